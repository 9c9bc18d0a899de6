"""Gated slot attention (arXiv 2409.07146, section 3) over packed segments: a memory of M slots, read in two passes.

Per head, with keys hk of shape [K, M] and values hv of shape [M, V] in float32:

    hk_t = hk_{t-1} diag(exp(g_t)) + k_t s_t^T;   p_t = softmax(scale * hk_t^T q_t)
    hv_t = diag(exp(g_t)) hv_{t-1} + s_t v_t^T;   o_t = hv_t^T p_t

s writes to slots (``1 - exp(g)`` in the paper) and g is their log decay. The second pass is
vector decay with p as query and s as key; the first one decays the value axis instead. M
counts slots here, not memories.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, to_chunks, transpose
from mom_jax.ops.decays import channel_decays, decayed_values, documents, masked
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Form, Primitive, float32, kernels_over, overlap, read_all
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows, vector_decay_chunked, vector_decay_flops
from mom_jax.typing import Array, Float

Slots = tuple[Float[Array, "S H K M"], Float[Array, "S H M V"]]


class GatedSlotsRows(NamedTuple):
    """Rows of gated slot attention."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    g: Float[Array, "N H M"]  # log decay of each slot, at most 0
    s: Float[Array, "N H M"]  # how much each slot takes of the token


def gated_slots_step(rows: GatedSlotsRows, state: Slots, scale: float) -> tuple[Float[Array, "N H V"], Slots]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    keys, values = state
    q, k, slots, g = map(widened, (rows.q, rows.k, rows.s, rows.g))
    # [N, H, M] twice
    kept = jnp.exp(g)
    (before,) = read_all(keys, q)
    p = jax.nn.softmax(scale * (kept * before + overlap(q, k) * slots), -1)
    keys = kept[..., None, :] * keys + k[..., None] * slots[..., None, :]
    o, values = VECTOR_DECAY.step(VectorDecayRows(p, slots, rows.v, rows.g), values, 1.0)
    return o, (keys, values)


def _in_two_passes(
    second: Form, rows: GatedSlotsRows, table: ChunkTable, state: Slots | None, scale: float
) -> tuple[Float[Array, "N H V"], Slots | None]:
    """The same recurrence, chunk by chunk: two linear passes with a softmax in between; the second is vector decay.

    The backward pass keeps the inputs and M values per row of the first pass's outputs.
    """
    keys, values = (None, None) if state is None else state
    p, keys = _slot_scores(rows, table, keys, scale)
    o, values = second(VectorDecayRows(jax.nn.softmax(p, -1), rows.s, rows.v, rows.g), table, values, 1.0)
    return o, None if keys is None or values is None else (keys, values)


@functools.partial(jax.checkpoint, static_argnums=3)
def _slot_scores(
    rows: GatedSlotsRows, table: ChunkTable, state: Float[Array, "S H K M"] | None, scale: float
) -> tuple[Float[Array, "N H M"], Float[Array, "S H K M"] | None]:
    """The first pass, and the keys' final state. Inside, states are [M, K]."""
    # [chunks, H, C, K or M]
    q, k, s, g = (to_chunks(x, table.chunk_size) for x in (scale * widened(rows.q), rows.k, rows.s, rows.g))
    decays = channel_decays(g, table)
    # [chunks, H, M, K]
    update = transpose(decays.leave * s) @ k
    start = None if state is None else transpose(state)
    states, final = border_states(update, decays.across[..., None], table, start)
    # [chunks, H, C, C]
    earlier = masked(q @ transpose(k), documents(table).between)
    # [chunks, H, C, M]
    before = decays.enter * (q @ transpose(states)) + decayed_values(earlier, s, decays)
    read = jnp.exp(g) * before + jnp.sum(q * k, -1, keepdims=True) * s
    return from_chunks(read), None if final is None else transpose(final)


@functools.cache
def gated_slots(num_slots: int) -> Primitive:
    """Gated slot attention with M slots in each head."""

    def flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
        keys = 2 * 2.0 * key_dim * num_slots + 2.0 * chunk * (key_dim + num_slots / 2)
        forward = keys + vector_decay_flops(chunk, num_slots, value_dim)[0]
        return forward, 3 * forward

    return Primitive(
        name="gated slots",
        rows=GatedSlotsRows,
        state=lambda heads, keys, values: (float32(heads, keys, num_slots), float32(heads, num_slots, values)),
        step=gated_slots_step,
        chunked=functools.partial(_in_two_passes, vector_decay_chunked),
        kernels=kernels_over(VECTOR_DECAY, _in_two_passes),
        inert=("g", "s"),
        flops=flops,
    )


GATED_SLOTS = gated_slots(num_slots=64)
