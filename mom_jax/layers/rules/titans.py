"""Titans' linear memories (arXiv 2501.00663, sections 3.1 and 3.2): gradient descent with momentum and forgetting.

Each memory has its own key, value and gate projections, and takes its mini-batches from its own
sequence; the query projection and the short convolutions are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.parts import add_bias, per_memory, recur
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.fast_weights import window_rows
from mom_jax.ops.flops import fast_weights_flops
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.segments import Packing
from mom_jax.ops.titans import titans_linear, titans_linear_step
from mom_jax.typing import Array, Float

_GATES = (-2.0, -4.0, 0.0)  # initial logits of theta (0.12), alpha (0.018) and eta (0.5)


class Titans(QueryKeyValueRule):
    """Surprise gate theta, forgetting alpha and momentum eta are sigmoids of a projection, one each for a head.

    Queries and keys are L2-normalised.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        mini_batch: tokens that take their gradients at the same memory.
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "gate_proj", "gate_bias")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        mini_batch: int = 16,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        sizes = (hidden, num_heads, key_dim, value_dim)
        super().__init__(*sizes, memories=memories, activate=True, rngs=rngs, **options)
        self.gate_proj = per_memory(rngs, memories, hidden, num_heads * len(_GATES))
        logits = lambda _, shape, dtype: jnp.broadcast_to(jnp.array(_GATES * num_heads, dtype), shape)  # noqa: E731
        self.gate_bias = param(rngs, logits, (memories, num_heads * len(_GATES)), (None, "tensor"))
        self.mini_batch = mini_batch

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (gates,), cache = self.rows(x, packing, cache, layer, self.gate_proj[...])
        q, k = l2_norm(q), l2_norm(k)
        gates = jax.nn.sigmoid(add_bias(gates.astype(jnp.float32), packing, self.gate_bias[...]))
        theta, alpha, eta = jnp.moveaxis(gates.reshape(gates.shape[0], -1, len(_GATES)), -1, 0)
        rows, valid, table, size = (q, k, v, theta, alpha, eta), packing.valid, packing.table, self.mini_batch
        return recur(
            lambda state: titans_linear(*rows, valid, table, state, mini_batch=size, impl=self.impl),
            lambda state: titans_linear_step(*rows, None, state, self.key_dim**-0.5, size),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the recurrence by mini-batches for one row and head: (forward, backward)."""
        return fast_weights_flops(window_rows(chunk, self.mini_batch), self.key_dim, self.value_dim, 3)

    def state_shapes(self) -> Any:
        """Memory, momentum and base [H, 3, K, V], and how many tokens of a mini-batch were seen."""
        shape = (self.num_heads, 3, self.key_dim, self.value_dim)
        return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
