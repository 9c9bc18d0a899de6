"""Kimi delta attention memories (arXiv 2510.26692, section 3): the delta rule with a decay for each key channel.

Each memory has its own key, value, strength and (low-rank) decay projections; the query projection,
the short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.parts import log_rates, per_memory, recur, through, time_step_bias
from mom_jax.ops.flops import rank_one_decay_flops
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.rank_one_decay import kda, kda_step
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class KDA(DeltaNet):
    """Log decay ``-exp(A_log) softplus(W_2 W_1 x + dt_bias)``, A_log for each head and the rest for each channel.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head; V is the rank of the decay's projection too.
        memories: G, the shared memory included; 1 with one projection for all memories.
        options: of `DeltaNet`.
    """

    per_memory = (*DeltaNet.per_memory, "f_down", "f_up")

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
        super().__init__(hidden, num_heads, key_dim, value_dim, memories=memories, rngs=rngs, **options)
        self.f_down = per_memory(rngs, memories, hidden, value_dim, split=False)
        self.f_up = per_memory(rngs, memories, value_dim, num_heads * key_dim)
        self.A_log = log_rates(rngs, num_heads, least=1.0)
        self.dt_bias = time_step_bias(rngs, num_heads * key_dim)

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (b, low), cache = self.rows(x, packing, cache, layer, self.b_proj[...], self.f_down[...])
        q, k = l2_norm(q), l2_norm(k)
        step = jax.nn.softplus(through(low, packing, self.f_up[...], self.impl).astype(jnp.float32) + self.dt_bias[...])
        decay = -jnp.exp(self.A_log[...])[:, None] * step.reshape(k.shape)
        strength = self.max_beta * jax.nn.sigmoid(b.astype(jnp.float32))
        g = jnp.where(packing.valid[:, None, None], decay, 0)
        beta = jnp.where(packing.valid[:, None], strength, 0)
        return recur(
            lambda state: kda(q, k, v, g, beta, packing.table, state, impl=self.impl),
            lambda state: kda_step(q, k, v, g, beta, state, self.key_dim**-0.5),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return rank_one_decay_flops(chunk, self.key_dim, self.value_dim)
