"""Gated DeltaNet memories (arXiv 2412.06464, equation 10), the default rule of MoM.

Each memory has its own key, value, gate and strength projections; the query projection, the
short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.parts import log_rates, per_memory, time_step_bias
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class GatedDeltaNet(DeltaNet):
    """The delta rule with learnt decay.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        options: of `DeltaNet`.
    """

    per_memory = (*DeltaNet.per_memory, "a_proj")

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
        self.a_proj = per_memory(rngs, memories, hidden, num_heads)
        self.A_log = log_rates(rngs, num_heads, least=1e-4)
        self.dt_bias = time_step_bias(rngs, num_heads)

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        gates = jnp.concatenate([self.b_proj[...], self.a_proj[...]], -1)
        q, k, v, (gates,), cache = self.rows(x, packing, cache, layer, gates)
        b, a = jnp.split(gates.astype(jnp.float32), 2, axis=-1)
        decay = -jnp.exp(self.A_log[...]) * jax.nn.softplus(a + self.dt_bias[...])
        return self.run(q, k, v, b, decay, packing, cache, layer)
