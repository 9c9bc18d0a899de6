"""Gated DeltaNet memories (arXiv 2412.06464, equation 10), the default rule of MoM.

Each memory has its own key, value, gate and strength projections; the query projection, the
short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.parts import per_memory
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
        self.A_log = param(rngs, _init_a_log, (num_heads,), ("tensor",))
        self.dt_bias = param(rngs, _init_dt_bias, (num_heads,), ("tensor",))

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        gates = jnp.concatenate([self.b_proj[...], self.a_proj[...]], -1)
        q, k, v, (gates,), cache = self.rows(x, packing, cache, layer, gates)
        b, a = jnp.split(gates.astype(jnp.float32), 2, axis=-1)
        decay = -jnp.exp(self.A_log[...]) * jax.nn.softplus(a + self.dt_bias[...])
        return self.run(q, k, v, b, decay, packing, cache, layer)


def _init_a_log(key, shape, dtype):
    return jnp.log(jax.random.uniform(key, shape, dtype, minval=1e-4, maxval=16.0))


def _init_dt_bias(key, shape, dtype):
    """Inverse softplus of time steps that are log-uniform in [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, minval=math.log(1e-3), maxval=math.log(0.1)))
    return dt + jnp.log(-jnp.expm1(-dt))
