"""What mixes along time in a block: from the configuration to a memory or an attention layer."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from mom_jax.layers.attention import Attention
from mom_jax.layers.mom import MoM
from mom_jax.layers.output import HeadNormOutput
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.gated_deltanet import GatedDeltaNet
from mom_jax.layers.rules.gla import GLA
from mom_jax.layers.rules.linear_attention import Lightning, LinearAttention, RetNet
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.models.config import MoMConfig


def make_mixer(config: MoMConfig, kind: str, rngs: nnx.Rngs) -> MoM | Attention:
    """The mixer of a ``memory`` or an ``attention`` block."""
    if kind == "attention":
        return _attention(config, rngs)
    rule = _rule(config, rngs)
    output = _head_norm(config, rngs)
    if not config.mixture:
        return MoM(config.hidden_size, rule, output, num_memories=None, rngs=rngs)
    return MoM(
        config.hidden_size,
        rule,
        output,
        num_memories=config.num_memories,
        top_k=config.topk,
        shared=config.shared_mem,
        rngs=rngs,
    )


def _projections(config: MoMConfig) -> int:
    """How many memories have projections of their own."""
    one = config.single_kv_proj or not config.mixture
    return 1 if one else config.num_memories + config.shared_mem


def _gated_deltanet(config: MoMConfig) -> dict[str, Any]:
    leaking = config.num_memories if config.reference_conv_leak else 0
    return {"allow_neg_eigval": config.allow_neg_eigval, "leaking_memories": leaking}


def _deltanet(config: MoMConfig) -> dict[str, Any]:
    return {"allow_neg_eigval": config.allow_neg_eigval}


def _linear_attention(config: MoMConfig) -> dict[str, Any]:
    return {"feature_map": config.feature_map, "normalise": config.norm_feature_map}


def _retnet(config: MoMConfig) -> dict[str, Any]:
    return {}


def _lightning(config: MoMConfig) -> dict[str, Any]:
    return {"layers": config.layer_kinds.count("memory")}


def _gla(config: MoMConfig) -> dict[str, Any]:
    return {"gate_rank": config.gate_low_rank_dim, "gate_logit_normalizer": config.gate_logit_normalizer}


# memory_rule: (its module, what the module needs besides sizes and convolutions)
_RULES: dict[str, tuple[type[MemoryRule], Callable[[MoMConfig], dict[str, Any]]]] = {
    "gated_deltanet": (GatedDeltaNet, _gated_deltanet),
    "deltanet": (DeltaNet, _deltanet),
    "linear_attention": (LinearAttention, _linear_attention),
    "retnet": (RetNet, _retnet),
    "lightning": (Lightning, _lightning),
    "gla": (GLA, _gla),
}


def _rule(config: MoMConfig, rngs: nnx.Rngs) -> MemoryRule:
    module, options = _RULES[config.memory_rule]
    sizes = (config.hidden_size, config.num_heads, config.head_dim, config.head_v_dim)
    conv_size = config.conv_size if config.use_short_conv else None
    made: Any = module
    return made(*sizes, memories=_projections(config), conv_size=conv_size, **options(config), rngs=rngs)


def _head_norm(config: MoMConfig, rngs: nnx.Rngs) -> HeadNormOutput:
    return HeadNormOutput(
        config.hidden_size,
        config.num_heads,
        config.head_v_dim,
        gate=config.use_output_gate,
        norm_eps=config.norm_eps,
        rngs=rngs,
    )


def _attention(config: MoMConfig, rngs: nnx.Rngs) -> Attention:
    return Attention(
        config.hidden_size,
        config.attn.num_heads,
        config.attn.kv_heads,
        qkv_bias=config.attn.qkv_bias,
        window=config.attn.window_size,
        rope_theta=config.attn.rope_theta,
        initializer_range=config.initializer_range,
        rngs=rngs,
    )
