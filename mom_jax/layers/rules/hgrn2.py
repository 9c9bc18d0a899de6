"""HGRN2 memories (arXiv 2404.07904, section 3): forget gates with a lower bound, and keys that are what they free.

Each memory has its own forget-gate and input projections (``k_proj`` and ``v_proj``); the query
projection, the short convolutions and the lower bounds are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.parts import recur
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.flops import vector_decay_flops
from mom_jax.ops.segments import Packing
from mom_jax.ops.vector_decay import vector_decay, vector_decay_step
from mom_jax.typing import Array, Float

_LEAST = 1e-30  # under which a lower bound is none; exp of a decay as strong is 0 in all that follows


class HGRN2(QueryKeyValueRule):
    """Decay ``f = bound + (1 - bound) sigmoid(W x)`` for each channel, key ``1 - f``.

    The bounds of a model grow with depth: a softmax over its layers, summed up to each layer,
    less the first layer's share. `couple_layers` computes them from the stacked logits. A layer by
    itself takes ``lower_bound`` as it is; 0, its initial value, is none.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        options: of `QueryKeyValueRule`.
    """

    activate_conv = False

    def __init__(
        self, hidden: int, num_heads: int, key_dim: int, value_dim: int, *, rngs: nnx.Rngs, **options: Any
    ):
        super().__init__(hidden, num_heads, key_dim, value_dim, rngs=rngs, **options)
        self.lower_bound = param(rngs, jax.nn.initializers.zeros, (num_heads * key_dim,), ("tensor",))

    def couple_layers(self) -> None:
        """The bounds of all layers, from the logits [L, H * K] of all layers."""
        share = jax.nn.softmax(self.lower_bound[...], 0)
        self.lower_bound[...] = jnp.cumsum(share, 0) - share[0]

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, f, v, _, cache = self.rows(x, packing, cache, layer)
        q, bound = jax.nn.silu(q), self.lower_bound[...].reshape(f.shape[1:])
        learnt = jnp.log1p(-bound) + jax.nn.log_sigmoid(f.astype(jnp.float32))
        decay = jnp.logaddexp(jnp.log(jnp.maximum(bound, _LEAST)), learnt)
        g = jnp.where(packing.valid[:, None, None], decay, 0)
        k = -jnp.expm1(g)  # 0 on padding rows
        return recur(
            lambda state: vector_decay(q, k, v, g, packing.table, state, impl=self.impl),
            lambda state: vector_decay_step(q, k, v, g, None, state, self.key_dim**-0.5),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return vector_decay_flops(chunk, self.key_dim, self.value_dim)
