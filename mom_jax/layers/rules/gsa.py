"""Gated slot attention memories (arXiv 2409.07146, section 3): M slots that are read by a softmax over them.

Each memory has its own key, value and slot-gate projections; the query projection and the short
convolutions are shared by all memories.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.fields import Divisor, Slots
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.projections import per_memory
from mom_jax.layers.rules.published import (
    CONV,
    QKV,
    RATIO_DEFAULTS,
    RATIOS,
    Fields,
    Layout,
    Published,
    Row,
    Sizes,
    alone,
    check_hidden_channels,
)
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.gated_slots import GatedSlotsRows, gated_slots
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float

_NORM_EPS = 1e-5  # its layer in the PyTorch package norms with this, whatever norm_eps its configuration gives


@dataclasses.dataclass(frozen=True)
class GSAOptions(ConvOptions):
    """Options of GSA."""

    num_slots: Slots = 64  # M for each head
    gate_logit_normalizer: Divisor = 8  # the larger, the slower slots forget


_TENSORS = QKV | {"attn.rule.f_proj": alone("attn.f_proj.weight"), "attn.output.norm": Row("attn.g_norm.weight")}


def _read_sizes(fields: Fields) -> Fields:
    sizes = RATIOS.read(fields)
    return sizes | {"num_slots": fields["num_slots"] or sizes["head_dim"]}


def _write_sizes(fields: Fields) -> Fields:
    check_hidden_channels("gsa", fields, round(fields["head_dim"] * fields["expand_v"]))
    return RATIOS.write(fields)


class GSA(QueryKeyValueRule):
    """A slot keeps ``f = sigmoid(W x)^(1 / normaliser)`` of what it holds and takes ``1 - f`` of the token.

    Queries, keys and values pass a SiLU (behind that of the convolutions, where there are any).
    """

    Options = GSAOptions
    options: GSAOptions
    paper = Paper("2409.07146", "section 3")
    paces = True
    published = Published(
        "gsa",
        "GSAForCausalLM",
        Layout(_TENSORS),
        sizes=Sizes(_read_sizes, _write_sizes),
        options=(*CONV, "num_slots", "gate_logit_normalizer"),
        defaults={**RATIO_DEFAULTS, "use_short_conv": False, "num_slots": 64, "gate_logit_normalizer": 8},
        only={"num_kv_heads": None, "feature_map": "swish", "elementwise_affine": True},
    )
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "f_proj")

    def __init__(self, sizes: RuleSizes, options: GSAOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.f_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads * options.num_slots)

    @property
    def primitive(self) -> Primitive:
        """Gated slots."""
        return gated_slots(self.options.num_slots)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: GSAOptions, rngs: nnx.Rngs) -> Output:
        """SiLU and a norm over all heads, without a gate."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        return HiddenNormOutput(*shape, before=jax.nn.silu, norm_eps=_NORM_EPS, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[GatedSlotsRows, None, MemoryCache | None]:
        """Packed rows of gated slots, and the cache."""
        q, k, v, (f,), cache = self.qkv(x, packing, cache, layer, self.f_proj[...])
        q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        logits = heads(widened(f), self.options.num_slots)
        g = self.paced(jax.nn.log_sigmoid(logits) / self.options.gate_logit_normalizer, packing)
        return GatedSlotsRows(q, k, v, g, -jnp.expm1(g)), None, cache
