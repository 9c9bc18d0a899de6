"""Gated DeltaNet memories (arXiv 2412.06464, equation 10), the default rule of MoM.

Each memory has its own key, value, gate and strength projections; the query projection, the
short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.ops.delta_rule import chunk_rows, delta_rule_step, gated_delta_rule
from mom_jax.ops.grouped_matmul import grouped_matmul
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.reference_conv_leak import leaking_short_conv
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.short_conv import conv_state, short_conv
from mom_jax.typing import Array, Float


class GatedDeltaNet(nnx.Module):
    """Keys, values and gates of G memories, and the gated delta rule over their packed rows.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        conv_size: taps W of the short convolutions; None leaves SiLU alone.
        leaking_memories: without a cache, convolve the sequences of that many memories end to end
            (`mom_jax.ops.reference_conv_leak`).
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        conv_size: int | None,
        leaking_memories: int = 0,
        rngs: nnx.Rngs,
    ):
        self.key_dim, self.value_dim, self.leaking_memories = key_dim, value_dim, leaking_memories
        keys, values = num_heads * key_dim, num_heads * value_dim
        init = mixer_init
        self.q_proj = Linear(hidden, keys, split="column", init=init, rngs=rngs)
        per_memory = (None, "fsdp", "tensor")
        self.k_proj = param(rngs, init, (memories, hidden, keys), per_memory)
        self.v_proj = param(rngs, init, (memories, hidden, values), per_memory)
        self.b_proj = param(rngs, init, (memories, hidden, num_heads), per_memory)
        self.a_proj = param(rngs, init, (memories, hidden, num_heads), per_memory)
        self.A_log = param(rngs, _init_a_log, (num_heads,), ("tensor",))
        self.dt_bias = param(rngs, _init_dt_bias, (num_heads,), ("tensor",))
        self.conv_size = conv_size
        if conv_size is not None:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (
                param(rngs, _init_conv, (channels, conv_size), ("tensor", None)) for channels in (keys, keys, values)
            )

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q = pack(self.q_proj(x), packing)
        k, v, b, a = self._project(x, packing)
        if self.conv_size is not None:
            (q, k, v), cache = self._convolve({"q": q, "k": k, "v": v}, packing, cache, layer)
        else:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        q, k = (l2_norm(y.reshape(y.shape[0], -1, self.key_dim)) for y in (q, k))
        v = v.reshape(v.shape[0], -1, self.value_dim)
        valid = packing.valid[:, None]
        decay = -jnp.exp(self.A_log[...]) * jax.nn.softplus(a + self.dt_bias[...])
        g, beta = (jnp.where(valid, y, 0) for y in (decay, jax.nn.sigmoid(b)))
        return self._recur(q, k, v, g, beta, packing, cache, layer)

    def chunk_rows(self, time: int) -> int:
        """Alignment of packed segments for rows of ``time`` tokens; 1 for a single step."""
        return chunk_rows(time, self.key_dim)

    def _project(self, x, packing):
        """Rows of k and v in ``x.dtype`` [N, H*K], [N, H*V]; b and a in float32 [N, H]."""
        gates = jnp.concatenate([self.b_proj[...], self.a_proj[...]], -1)
        weights = tuple(w.astype(x.dtype) for w in (self.k_proj[...], self.v_proj[...], gates))
        if weights[0].shape[0] == 1:
            k, v, gates = (pack(jnp.dot(x, w[0]), packing) for w in weights)
        else:
            k, v, gates = grouped_matmul(pack(x, packing), weights, packing.group_sizes)
        b, a = jnp.split(gates.astype(jnp.float32), 2, axis=-1)
        return k, v, b, a

    def _convolve(self, inputs, packing, cache, layer):
        weights = {"q": self.q_conv1d[...], "k": self.k_conv1d[...], "v": self.v_conv1d[...]}
        if cache is None and self.leaking_memories:
            return [
                leaking_short_conv(y, weights[name], packing, self.leaking_memories) for name, y in inputs.items()
            ], None
        if cache is None:
            return [short_conv(y, weights[name], packing) for name, y in inputs.items()], None
        outputs, stored = [], {}
        for name, y in inputs.items():
            state = cache.conv[name][layer]
            flat = state.reshape(-1, *state.shape[2:])
            outputs.append(short_conv(y, weights[name], packing, flat))
            stored[name] = cache.conv[name].at[layer].set(conv_state(y, packing, flat).reshape(state.shape))
        return outputs, dataclasses.replace(cache, conv=stored)

    def _recur(self, q, k, v, g, beta, packing, cache, layer):
        if cache is None:
            return gated_delta_rule(q, k, v, g, beta, packing.table)[0], None
        stored = cache.recurrent
        flat = stored.reshape(stored.shape[0], -1, *stored.shape[3:])
        if packing.table.chunk_size == 1:  # one token for each row: touch the written memories alone
            segment = packing.table.segment
            state = flat.at[layer, segment].get(mode="clip")
            if packing.table.reset is not None:
                state = jnp.where(packing.table.reset[:, None, None, None], 0.0, state)
            o, state = delta_rule_step(q, k, v, g, beta, state, scale=self.key_dim**-0.5)
            flat = flat.at[layer, segment].set(state, mode="drop")
        else:
            o, state = gated_delta_rule(q, k, v, g, beta, packing.table, flat[layer])
            flat = flat.at[layer].set(state)
        return o, dataclasses.replace(cache, recurrent=flat.reshape(stored.shape))


def _init_a_log(key, shape, dtype):
    return jnp.log(jax.random.uniform(key, shape, dtype, minval=1e-4, maxval=16.0))


def _init_dt_bias(key, shape, dtype):
    """Inverse softplus of time steps that are log-uniform in [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, minval=math.log(1e-3), maxval=math.log(0.1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def _init_conv(key, shape, dtype):
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)
