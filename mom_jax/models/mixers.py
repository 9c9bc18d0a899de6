"""What mixes along time in a block: from the configuration to a memory or an attention layer."""

import dataclasses
from typing import Any

from flax import nnx

from mom_jax.layers.attention import Attention
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.layers.router_options import RouterOptions
from mom_jax.layers.rules.registry import find_rule
from mom_jax.models.attention_config import AttentionConfig
from mom_jax.models.config import MoMConfig


def make_mixer(config: MoMConfig, kind: str, rngs: nnx.Rngs) -> MemoryMixer | Attention:
    """The mixer of a block of a kind of `MoMConfig.layer_kinds`."""
    if kind != "memory":
        return _attention(config, config.attention[kind], rngs)
    return MemoryMixer(
        config.hidden_size,
        rule=config.memory_rule,
        num_heads=config.num_heads,
        head_k_dim=config.head_dim,
        head_v_dim=config.head_v_dim,
        num_memories=config.num_memories if config.mixture else None,
        top_k=config.topk,
        shared=config.shared_mem,
        single_projection=config.single_kv_proj,
        projection_rank=config.projection_rank,
        decay_spread=config.decay_spread,
        learned_initial_state=config.learned_initial_state,
        router_bias=config.has_router_bias,
        layers=config.layer_kinds.count("memory"),
        options=_named(find_rule(config.memory_rule).Options, config) | config.named_rule_options(),
        rngs=rngs,
        **_named(RouterOptions, config),
    )


def _named(options: Any, config: MoMConfig) -> dict[str, Any]:
    """The fields of the configuration that a dataclass of options has too."""
    names = [field.name for field in dataclasses.fields(options)]
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _attention(config: MoMConfig, attn: AttentionConfig, rngs: nnx.Rngs) -> Attention:
    return Attention(
        config.hidden_size,
        attn.num_heads,
        attn.kv_heads,
        head_dim=attn.head_dim,
        qkv_bias=attn.qkv_bias,
        window=attn.window_size,
        rope_theta=attn.rope_theta,
        rotated=attn.rotated(config.hidden_size),
        output_gate=attn.output_gate,
        norm_eps=config.norm_eps if attn.qk_norm else None,
        initializer_range=config.initializer_range,
        rngs=rngs,
    )
