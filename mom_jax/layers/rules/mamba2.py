"""Mamba2 memories (arXiv 2405.21060, sections 6 and 7): a state-space recurrence with one decay for each head.

In the terms of the other rules: the paper's C is the query, B the key, x the value, and all heads
share queries and keys. Each memory has its own key, value and time-step projections; the query
projection, the convolutions, ``A_log``, ``dt_bias`` and the skip ``D`` are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.parts import log_rates, per_memory, recur, time_step_bias
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.flops import scalar_decay_flops
from mom_jax.ops.scalar_decay import scalar_decay, scalar_decay_step
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class Mamba2(QueryKeyValueRule):
    """``S_t = exp(-exp(A_log) dt) S_{t-1} + k (dt v)^T;  o = S^T q + D v`` with ``dt = softplus(W x + dt_bias)``.

    Args:
        hidden: D of the model.
        num_heads, key_dim, value_dim: H, K (the paper's state size N) and V (its head size P).
        memories: G, the shared memory included; 1 with one projection for all memories.
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "dt_proj")
    whole_history = ("q", "k")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        sizes = (hidden, num_heads, key_dim, value_dim)
        super().__init__(*sizes, memories=memories, activate=True, key_heads=1, rngs=rngs, **options)
        self.dt_proj = per_memory(rngs, memories, hidden, num_heads)
        self.A_log = log_rates(rngs, num_heads, least=1.0)
        self.dt_bias = time_step_bias(rngs, num_heads)
        self.D = param(rngs, jax.nn.initializers.ones, (num_heads,), ("tensor",))

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (dt,), cache = self.rows(x, packing, cache, layer, self.dt_proj[...])
        q, k = (jnp.broadcast_to(y, (*v.shape[:2], self.key_dim)) for y in (q, k))
        step = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...])
        step = jnp.where(packing.valid[:, None], step, 0)
        g, written = -jnp.exp(self.A_log[...]) * step, v.astype(jnp.float32) * step[..., None]
        o, cache = recur(
            lambda state: scalar_decay(q, k, written, g, packing.table, state, scale=1.0, impl=self.impl),
            lambda state: scalar_decay_step(q, k, written, g, state, 1.0),
            packing,
            cache,
            layer,
        )
        skip = jnp.where(packing.valid[:, None, None], self.D[...][:, None] * v.astype(jnp.float32), 0)
        return (o + skip).astype(x.dtype), cache

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return scalar_decay_flops(chunk, self.key_dim, self.value_dim)
