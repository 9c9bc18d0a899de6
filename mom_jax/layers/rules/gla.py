"""Gated linear attention memories (arXiv 2312.06635, equations 3 and 4): a decay for each key channel.

Each memory has its own key, value and gate projections; the query projection is shared.
"""

import dataclasses

import jax
from flax import nnx

from mom_jax.fields import Channels, Divisor
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.projections import add_bias, per_memory, through
from mom_jax.layers.rules.linear_attention import GATED_TENSORS
from mom_jax.layers.rules.published import CONV, RATIOS, SAME, Layout, Published, alone
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class GLAOptions(ConvOptions):
    """Options of GLA."""

    gate_low_rank_dim: Channels = 16  # rank of the gate's projection
    gate_logit_normalizer: Divisor = 16  # the larger, the slower memories forget


_TENSORS = GATED_TENSORS | {
    "attn.rule.gk_down": alone("attn.gk_proj.0.weight"),
    "attn.rule.gk_up": alone("attn.gk_proj.1.weight"),
    "attn.rule.gk_bias": alone("attn.gk_proj.1.bias", SAME),
}


class GLA(QueryKeyValueRule):
    """Decay ``sigmoid(W_2 W_1 x + b)^(1 / normaliser)`` from a low-rank projection."""

    Options = GLAOptions
    options: GLAOptions
    paper = Paper("2312.06635", "equations 3 and 4")
    paces = True
    published = Published(
        "gla",
        "GLAForCausalLM",
        Layout(_TENSORS),
        sizes=RATIOS,
        options=("use_output_gate", *CONV),
        defaults={"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False},
        only={
            **dict.fromkeys(("num_kv_heads", "feature_map", "clamp_min")),
            "use_gk": True,
            "use_gv": False,
            "elementwise_affine": True,
        },
        written={"use_output_gate": True, "gate_logit_normalizer": 16, "gate_low_rank_dim": 16},
    )
    primitive = VECTOR_DECAY
    per_memory = (*QueryKeyValueRule.per_memory, "gk_down", "gk_up", "gk_bias")

    def __init__(self, sizes: RuleSizes, options: GLAOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        memories, rank, keys = sizes.projections, options.gate_low_rank_dim, sizes.key_dim
        self.gk_down = per_memory(rngs, memories, sizes.hidden_size, rank, split=False)
        self.gk_up = per_memory(rngs, memories, rank, keys)
        self.gk_bias = param(rngs, jax.nn.initializers.zeros, (memories, keys), (None, "tensor"))

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[VectorDecayRows, None, MemoryCache | None]:
        """Packed rows of vector decay, and the cache."""
        q, k, v, (low,), cache = self.qkv(x, packing, cache, layer, self.gk_down[...])
        gate = add_bias(through(low, packing, self.gk_up[...], self.options.impl), packing, self.gk_bias[...])
        g = jax.nn.log_sigmoid(widened(gate)).reshape(k.shape) / self.options.gate_logit_normalizer
        g = self.paced(g, packing)
        return VectorDecayRows(q, k, v, g), None, cache
