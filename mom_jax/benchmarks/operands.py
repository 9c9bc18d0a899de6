"""Inputs of the benchmarks: one row of T tokens, float32."""

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import chunk_rows
from mom_jax.ops.dispatch import KERNELS
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.segments import ChunkTable, plan_packing
from mom_jax.typing import Array


def one_segment(time: int, key_dim: int, rows: int | None = None) -> ChunkTable:
    """A single segment of ``time`` rows, in chunks of ``rows`` or those that layers use for keys of this size."""
    memories = jnp.zeros((1, time, 1), jnp.int32)
    return plan_packing(memories, 1, shared=False, chunk_size=rows or chunk_rows(time, key_dim, "auto", KERNELS)).table


def delta_rule_rows(time: int, heads: int, key_dim: int, value_dim: int) -> tuple[Array, Array, Array, Array, Array]:
    """q, k, v [T, H, *] and g, beta [T, H] as a trained layer would give them."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k = (l2_norm(jax.random.normal(key, (time, heads, key_dim))) for key in keys[:2])
    v = jax.random.normal(keys[2], (time, heads, value_dim))
    g = -0.3 * jax.nn.softplus(jax.random.normal(keys[3], (time, heads)))
    beta = jax.nn.sigmoid(jax.random.normal(keys[4], (time, heads)))
    return q, k, v, g, beta
