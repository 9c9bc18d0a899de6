"""Gated linear attention memories (arXiv 2312.06635, equations 3 and 4): a decay for each key channel.

Each memory has its own key, value and gate projections; the query projection is shared.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.parts import add_bias, per_memory, recur, through
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.flops import vector_decay_flops
from mom_jax.ops.segments import Packing
from mom_jax.ops.vector_decay import vector_decay, vector_decay_step
from mom_jax.typing import Array, Float


class GLA(QueryKeyValueRule):
    """Decay ``sigmoid(W_2 W_1 x + b)^(1 / normaliser)`` from a low-rank projection.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        gate_rank: of the gate's projection.
        gate_logit_normalizer: the larger, the slower memories forget.
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "gk_down", "gk_up", "gk_bias")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        gate_rank: int = 16,
        gate_logit_normalizer: float = 16,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(hidden, num_heads, key_dim, value_dim, memories=memories, rngs=rngs, **options)
        keys = num_heads * key_dim
        self.gk_down = per_memory(rngs, memories, hidden, gate_rank, split=False)
        self.gk_up = per_memory(rngs, memories, gate_rank, keys)
        self.gk_bias = param(rngs, jax.nn.initializers.zeros, (memories, keys), (None, "tensor"))
        self.gate_logit_normalizer = gate_logit_normalizer

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (low,), cache = self.rows(x, packing, cache, layer, self.gk_down[...])
        gate = add_bias(through(low, packing, self.gk_up[...], self.impl), packing, self.gk_bias[...])
        g = jax.nn.log_sigmoid(gate.astype(jnp.float32)).reshape(k.shape) / self.gate_logit_normalizer
        g, k = (jnp.where(packing.valid[:, None, None], y, 0) for y in (g, k))
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
