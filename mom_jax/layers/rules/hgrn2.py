"""HGRN2 memories (arXiv 2404.07904, section 3): forget gates with a lower bound, and keys that are what they free.

Each memory has its own forget-gate and input projections (``k_proj`` and ``v_proj``); the query
projection, the short convolutions and the lower bounds are shared by all memories.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Range, checked
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.rules.published import (
    CONV,
    QKV,
    TAPS,
    Fields,
    Layout,
    Published,
    Row,
    Sizes,
    alone,
    check_hidden_channels,
)
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array, Float

_LEAST = 1e-30  # under which a lower bound is none; exp of a decay as strong is 0 in all that follows
_NORM_EPS = 1e-5  # its layer in the PyTorch package norms with this, whatever norm_eps its configuration gives


_Heads = Annotated[int, Range(least=1, most=2**24)]
_TENSORS = QKV | {
    "attn.rule.k_proj": alone("attn.f_proj.weight"),
    "attn.rule.v_proj": alone("attn.i_proj.weight"),
    "attn.rule.k_conv1d": Row("attn.f_conv1d.weight", TAPS),
    "attn.rule.v_conv1d": Row("attn.i_conv1d.weight", TAPS),
    "attn.rule.lower_bound": Row("model.lower_bounds", all_layers=True),
    "attn.output.norm": Row("attn.g_norm.weight"),
}


def _read_sizes(fields: Fields) -> Fields:
    hidden, keys = fields["hidden_size"], fields["expand_ratio"]
    if keys is None:
        keys = hidden // checked("num_heads", fields.get("num_heads"), _Heads)
    if keys < 1 or hidden % keys:
        raise InputError("expand_ratio", keys, f"must divide hidden_size ({hidden})")
    return {"head_dim": keys, "num_heads": hidden // keys, "expand_v": 1.0}


def _write_sizes(fields: Fields) -> Fields:
    check_hidden_channels("hgrn2", fields, fields["head_dim"])
    return {"num_heads": fields["num_heads"], "expand_ratio": fields["head_dim"]}


class HGRN2(QueryKeyValueRule):
    """Decay ``f = bound + (1 - bound) sigmoid(W x)`` for each channel, key ``1 - f``.

    The bounds of a model grow with depth: a softmax over its layers, summed up to each layer,
    less the first layer's share. `couple_layers` computes them from the stacked logits. A layer by
    itself takes ``lower_bound`` as it is; 0, its initial value, is none.
    """

    paper = Paper("2404.07904", "section 3")
    paces = True
    published = Published(
        "hgrn2",
        "HGRN2ForCausalLM",
        Layout(_TENSORS),
        sizes=Sizes(_read_sizes, _write_sizes),
        options=CONV,
        defaults={"hidden_size": 2048, "use_short_conv": False, "expand_ratio": 128},
        only={"use_lower_bound": True, "attn": None, "elementwise_affine": True},
        written={"attn": None, "expand_v": 1.0},
    )
    primitive = VECTOR_DECAY
    activate_conv = False

    def __init__(self, sizes: RuleSizes, options: ConvOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.lower_bound = param(rngs, jax.nn.initializers.zeros, (sizes.key_dim,), ("tensor",))

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: ConvOptions, rngs: nnx.Rngs) -> Output:
        """A norm over all heads, without a gate."""
        return HiddenNormOutput(sizes.hidden_size, sizes.num_heads, sizes.head_v_dim, norm_eps=_NORM_EPS, rngs=rngs)

    def couple_layers(self) -> None:
        """The bounds of all layers, from the logits [L, H * K] of all layers."""
        share = jax.nn.softmax(self.lower_bound[...], 0)
        self.lower_bound[...] = jnp.cumsum(share, 0) - share[0]

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[VectorDecayRows, None, MemoryCache | None]:
        """Packed rows of vector decay, and the cache."""
        q, f, v, _, cache = self.qkv(x, packing, cache, layer)
        bound = self.lower_bound[...].reshape(f.shape[1:])
        learnt = jnp.log1p(-bound) + jax.nn.log_sigmoid(widened(f))
        g = self.paced(jnp.logaddexp(jnp.log(jnp.maximum(bound, _LEAST)), learnt), packing)
        return VectorDecayRows(jax.nn.silu(q), -jnp.expm1(g), v, g), None, cache
