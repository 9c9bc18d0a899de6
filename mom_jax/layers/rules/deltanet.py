"""DeltaNet memories (arXiv 2406.06484, equation 2): the delta rule without decay.

Each memory has its own key, value and strength projections; the query projection and the short
convolutions are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.parts import per_memory, recur
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.delta_rule import delta_rule_step, gated_delta_rule
from mom_jax.ops.flops import delta_rule_flops
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class DeltaNet(QueryKeyValueRule):
    """The delta rule with learnt write strength; keys and queries are L2-normalised.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        allow_neg_eigval: write strengths up to 2 instead of 1 (arXiv 2411.12537).
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "b_proj")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        allow_neg_eigval: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        sizes = (hidden, num_heads, key_dim, value_dim)
        super().__init__(*sizes, memories=memories, activate=True, rngs=rngs, **options)
        self.b_proj = per_memory(rngs, memories, hidden, num_heads)
        self.max_beta = 2.0 if allow_neg_eigval else 1.0

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (b,), cache = self.rows(x, packing, cache, layer, self.b_proj[...])
        return self.run(q, k, v, b, jnp.zeros(b.shape, jnp.float32), packing, cache, layer)

    def run(
        self,
        q: Float[Array, "N H K"],
        k: Float[Array, "N H K"],
        v: Float[Array, "N H V"],
        b: Float[Array, "N H"],
        decay: Float[Array, "N H"],
        packing: Packing,
        cache: MemoryCache | None,
        layer: int | Array,
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """The delta rule over packed rows, with write strengths from their logits ``b``; padding does nothing."""
        q, k = l2_norm(q), l2_norm(k)
        strength = self.max_beta * jax.nn.sigmoid(b.astype(jnp.float32))
        g, beta = (jnp.where(packing.valid[:, None], y, 0) for y in (decay, strength))
        return recur(
            lambda state: gated_delta_rule(q, k, v, g, beta, packing.table, state, impl=self.impl),
            lambda state: delta_rule_step(q, k, v, g, beta, state, scale=self.key_dim**-0.5),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return delta_rule_flops(chunk, self.key_dim, self.value_dim)
