"""Gated slot attention memories (arXiv 2409.07146, section 3): M slots that are read by a softmax over them.

Each memory has its own key, value and slot-gate projections; the query projection and the short
convolutions are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.parts import per_memory, recur
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.flops import gated_slots_flops
from mom_jax.ops.gated_slots import gated_slots, gated_slots_step
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class GSA(QueryKeyValueRule):
    """A slot keeps ``f = sigmoid(W x)^(1 / normaliser)`` of what it holds and takes ``1 - f`` of the token.

    Queries, keys and values pass a SiLU (behind that of the convolutions, where there are any).

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        num_slots: M per head.
        gate_logit_normalizer: the larger, the slower slots forget.
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "f_proj")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        num_slots: int = 64,
        gate_logit_normalizer: float = 8,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(hidden, num_heads, key_dim, value_dim, memories=memories, rngs=rngs, **options)
        self.f_proj = per_memory(rngs, memories, hidden, num_heads * num_slots)
        self.num_slots, self.gate_logit_normalizer = num_slots, gate_logit_normalizer

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (f,), cache = self.rows(x, packing, cache, layer, self.f_proj[...])
        q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        f = f.astype(jnp.float32).reshape(f.shape[0], -1, self.num_slots)
        g = jnp.where(packing.valid[:, None, None], jax.nn.log_sigmoid(f) / self.gate_logit_normalizer, 0)
        s = -jnp.expm1(g)
        return recur(
            lambda state: gated_slots(q, k, v, s, g, packing.table, state, scale=1.0, impl=self.impl),
            lambda state: gated_slots_step(q, k, v, s, g, state, 1.0),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return gated_slots_flops(chunk, self.key_dim, self.value_dim, self.num_slots)

    def state_shapes(self) -> Any:
        """Keys [H, K, M] and values [H, M, V] of the slots."""
        sizes = (self.num_heads, self.key_dim, self.num_slots), (self.num_heads, self.num_slots, self.value_dim)
        return tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
