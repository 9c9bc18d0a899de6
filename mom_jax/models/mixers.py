"""What mixes along time in a block: from the configuration to a memory or an attention layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from mom_jax.layers.attention import Attention
from mom_jax.layers.mom import MoM
from mom_jax.layers.output import HeadNormOutput, HiddenNormOutput, LowRankGateOutput, Output
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.gated_deltanet import GatedDeltaNet
from mom_jax.layers.rules.gla import GLA
from mom_jax.layers.rules.gsa import GSA
from mom_jax.layers.rules.hgrn2 import HGRN2
from mom_jax.layers.rules.kda import KDA
from mom_jax.layers.rules.linear_attention import Lightning, LinearAttention, RetNet
from mom_jax.layers.rules.mamba2 import Mamba2
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.layers.rules.rwkv6 import RWKV6
from mom_jax.layers.rules.rwkv7 import RWKV7
from mom_jax.layers.rules.titans import Titans
from mom_jax.layers.rules.ttt import TTTLinear
from mom_jax.models.config import MoMConfig

# Of HGRN2 and GSA: their layers in the PyTorch package norm with this, whatever norm_eps their configuration gives.
_HIDDEN_NORM_EPS = 1e-5


def make_mixer(config: MoMConfig, kind: str, rngs: nnx.Rngs) -> MoM | Attention:
    """The mixer of a ``memory`` or an ``attention`` block."""
    if kind == "attention":
        return _attention(config, rngs)
    made_of = MEMORY_LAYERS[config.memory_rule]
    made: Any = made_of.rule  # the constructors differ in their options
    sizes = (config.hidden_size, config.num_heads, config.head_dim, config.head_v_dim)
    rule = made(*sizes, memories=_projections(config), **made_of.options(config), rngs=rngs)
    rule.impl = config.impl
    output = made_of.output(config, rngs)
    if not config.mixture:
        return MoM(config.hidden_size, rule, output, num_memories=None, rngs=rngs)
    return MoM(
        config.hidden_size,
        rule,
        output,
        num_memories=config.num_memories,
        top_k=config.topk,
        shared=config.shared_mem,
        biased=config.has_router_bias,
        rngs=rngs,
    )


def _projections(config: MoMConfig) -> int:
    """How many memories have projections of their own."""
    one = config.single_kv_proj or not config.mixture
    return 1 if one else config.num_memories + config.shared_mem


class MemoryLayer(NamedTuple):
    """How a memory layer of one rule is made; functions of the configuration and of a `flax.nnx.Rngs`."""

    rule: type[MemoryRule]
    options: Callable[[MoMConfig], dict[str, Any]]  # of the rule, besides sizes
    output: Callable[[MoMConfig, nnx.Rngs], Output]


def _gated_deltanet(config: MoMConfig) -> dict[str, Any]:
    leaking = config.num_memories if config.reference_conv_leak else 0
    return {**_deltanet(config), "leaking_memories": leaking}


def _deltanet(config: MoMConfig) -> dict[str, Any]:
    return {**_conv(config), "allow_neg_eigval": config.allow_neg_eigval}


def _linear_attention(config: MoMConfig) -> dict[str, Any]:
    return {**_conv(config), "feature_map": config.feature_map, "normalise": config.norm_feature_map}


def _conv(config: MoMConfig) -> dict[str, Any]:
    return {"conv_size": config.conv_size if config.use_short_conv else None}


def _lightning(config: MoMConfig) -> dict[str, Any]:
    return {**_conv(config), "layers": config.layer_kinds.count("memory")}


def _mamba2(config: MoMConfig) -> dict[str, Any]:
    return {**_conv(config), "conv_bias": True}


def _gla(config: MoMConfig) -> dict[str, Any]:
    normalizer = config.gate_logit_normalizer
    return {**_conv(config), "gate_rank": config.gate_low_rank_dim, "gate_logit_normalizer": normalizer}


def _gsa(config: MoMConfig) -> dict[str, Any]:
    normalizer = config.gate_logit_normalizer
    return {**_conv(config), "num_slots": config.num_slots, "gate_logit_normalizer": normalizer}


def _rwkv6(config: MoMConfig) -> dict[str, Any]:
    ranks = {"blend_rank": config.proj_low_rank_dim, "decay_rank": config.decay_low_rank_dim}
    return {**ranks, "norm_eps": config.norm_eps}


def _rwkv7(config: MoMConfig) -> dict[str, Any]:
    ranks = {"decay_rank": config.decay_low_rank_dim, "rate_rank": config.a_low_rank_dim}
    return {**ranks, "gate_rank": config.gate_low_rank_dim, "norm_eps": config.norm_eps}


def _ttt(config: MoMConfig) -> dict[str, Any]:
    return {**_titans(config), "norm_eps": config.norm_eps}


def _titans(config: MoMConfig) -> dict[str, Any]:
    return {**_conv(config), "mini_batch": config.mini_batch_size}


def _sizes(config: MoMConfig) -> tuple[int, int, int]:
    return config.hidden_size, config.num_heads, config.head_v_dim


def _head_norm(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return HeadNormOutput(*_sizes(config), gate=config.use_output_gate, norm_eps=config.norm_eps, rngs=rngs)


def _low_rank_gate(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return LowRankGateOutput(*_sizes(config), norm_eps=config.norm_eps, rngs=rngs)


def _gate_then_norm(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return HiddenNormOutput(*_sizes(config), gate=config.use_output_gate, norm_eps=config.norm_eps, rngs=rngs)


def _hidden_norm(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return HiddenNormOutput(*_sizes(config), norm_eps=_HIDDEN_NORM_EPS, rngs=rngs)


def _silu_hidden_norm(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return HiddenNormOutput(*_sizes(config), activation=jax.nn.silu, norm_eps=_HIDDEN_NORM_EPS, rngs=rngs)


def _projection(config: MoMConfig, rngs: nnx.Rngs) -> Output:
    return Output(*_sizes(config), rngs=rngs)


MEMORY_LAYERS: dict[str, MemoryLayer] = {
    "gated_deltanet": MemoryLayer(GatedDeltaNet, _gated_deltanet, _head_norm),
    "deltanet": MemoryLayer(DeltaNet, _deltanet, _head_norm),
    "kda": MemoryLayer(KDA, _deltanet, _low_rank_gate),
    "linear_attention": MemoryLayer(LinearAttention, _linear_attention, _head_norm),
    "retnet": MemoryLayer(RetNet, _conv, _head_norm),
    "lightning": MemoryLayer(Lightning, _lightning, _head_norm),
    "mamba2": MemoryLayer(Mamba2, _mamba2, _gate_then_norm),
    "gla": MemoryLayer(GLA, _gla, _head_norm),
    "hgrn2": MemoryLayer(HGRN2, _conv, _hidden_norm),
    "gsa": MemoryLayer(GSA, _gsa, _silu_hidden_norm),
    "rwkv6": MemoryLayer(RWKV6, _rwkv6, _projection),
    "rwkv7": MemoryLayer(RWKV7, _rwkv7, _projection),
    "ttt": MemoryLayer(TTTLinear, _ttt, _head_norm),
    "titans": MemoryLayer(Titans, _titans, _head_norm),
}


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
