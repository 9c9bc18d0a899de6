"""HGRN2 memories (arXiv 2404.07904, section 3): forget gates with a lower bound, and keys that are what they free.

Each memory has its own forget-gate and input projections (``k_proj`` and ``v_proj``); the query
projection, the short convolutions and the lower bounds are shared by all memories.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array, Float

_LEAST = 1e-30  # under which a lower bound is none; exp of a decay as strong is 0 in all that follows
_NORM_EPS = 1e-5  # its layer in the PyTorch package norms with this, whatever norm_eps its configuration gives


class HGRN2(QueryKeyValueRule):
    """Decay ``f = bound + (1 - bound) sigmoid(W x)`` for each channel, key ``1 - f``.

    The bounds of a model grow with depth: a softmax over its layers, summed up to each layer,
    less the first layer's share. `couple_layers` computes them from the stacked logits. A layer by
    itself takes ``lower_bound`` as it is; 0, its initial value, is none.
    """

    paper = Paper("2404.07904", "section 3")
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
        g = jnp.logaddexp(jnp.log(jnp.maximum(bound, _LEAST)), learnt)
        return VectorDecayRows(jax.nn.silu(q), -jnp.expm1(g), v, g), None, cache
