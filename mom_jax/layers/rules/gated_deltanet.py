"""Gated DeltaNet memories (arXiv 2412.06464, equation 10), the default rule of MoM.

Each memory has its own key, value, gate and strength projections; the query projection, the
short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.rules.parts import conv_history, conv_weight, convolve, per_memory, project, recur
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.delta_rule import chunk_rows, delta_rule_step, gated_delta_rule
from mom_jax.ops.flops import delta_rule_flops
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float


class GatedDeltaNet(MemoryRule):
    """Keys, values and gates of G memories, and the gated delta rule over their packed rows.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        conv_size: taps W of the short convolutions; None leaves SiLU alone.
        allow_neg_eigval: write strengths up to 2 instead of 1 (arXiv 2411.12537).
        leaking_memories: without a cache, convolve the sequences of that many memories end to end
            (`mom_jax.ops.reference_conv_leak`).
    """

    per_memory = ("k_proj", "v_proj", "b_proj", "a_proj")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        conv_size: int | None,
        allow_neg_eigval: bool = False,
        leaking_memories: int = 0,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, key_dim, value_dim)
        keys, values = num_heads * key_dim, num_heads * value_dim
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.b_proj = per_memory(rngs, memories, hidden, num_heads)
        self.a_proj = per_memory(rngs, memories, hidden, num_heads)
        self.A_log = param(rngs, _init_a_log, (num_heads,), ("tensor",))
        self.dt_bias = param(rngs, _init_dt_bias, (num_heads,), ("tensor",))
        self.conv_size, self.leaking_memories = conv_size, leaking_memories
        self.max_beta = 2.0 if allow_neg_eigval else 1.0
        if conv_size is not None:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (
                conv_weight(rngs, channels, conv_size) for channels in (keys, keys, values)
            )

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q = pack(self.q_proj(x), packing)
        gates = jnp.concatenate([self.b_proj[...], self.a_proj[...]], -1)
        k, v, gates = project(x, packing, (self.k_proj[...], self.v_proj[...], gates))
        b, a = jnp.split(gates.astype(jnp.float32), 2, axis=-1)
        if self.conv_size is not None:
            weights = {"q": self.q_conv1d[...], "k": self.k_conv1d[...], "v": self.v_conv1d[...]}
            rows = {"q": q, "k": k, "v": v}
            (q, k, v), cache = convolve(rows, weights, packing, cache, layer, self.leaking_memories)
        else:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        q, k = (l2_norm(y.reshape(y.shape[0], -1, self.key_dim)) for y in (q, k))
        v = v.reshape(v.shape[0], -1, self.value_dim)
        decay = -jnp.exp(self.A_log[...]) * jax.nn.softplus(a + self.dt_bias[...])
        g, beta = (jnp.where(packing.valid[:, None], y, 0) for y in (decay, self.max_beta * jax.nn.sigmoid(b)))
        return recur(
            lambda state: gated_delta_rule(q, k, v, g, beta, packing.table, state),
            lambda state: delta_rule_step(q, k, v, g, beta, state, scale=self.key_dim**-0.5),
            packing,
            cache,
            layer,
        )

    def chunk_rows(self, time: int) -> int:
        """Alignment of packed segments for rows of ``time`` tokens; 1 for a single step."""
        return chunk_rows(time, self.key_dim)

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return delta_rule_flops(chunk, self.key_dim, self.value_dim)

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that the short convolutions remember: (W-1, channels) by name."""
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        return conv_history(self.conv_size, q=keys, k=keys, v=values)


def _init_a_log(key, shape, dtype):
    return jnp.log(jax.random.uniform(key, shape, dtype, minval=1e-4, maxval=16.0))


def _init_dt_bias(key, shape, dtype):
    """Inverse softplus of time steps that are log-uniform in [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, minval=math.log(1e-3), maxval=math.log(0.1)))
    return dt + jnp.log(-jnp.expm1(-dt))
