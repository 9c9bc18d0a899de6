"""Gated slot attention (arXiv 2409.07146, section 3) over packed segments: a memory of M slots, read in two passes.

Per head, with keys hk of shape [K, M] and values hv of shape [M, V] in float32:

    hk_t = hk_{t-1} diag(exp(g_t)) + k_t s_t^T;   p_t = softmax(scale * hk_t^T q_t)
    hv_t = diag(exp(g_t)) hv_{t-1} + s_t v_t^T;   o_t = hv_t^T p_t

s writes to slots (``1 - exp(g)`` in the paper) and g is their log decay. The second pass is
`vector_decay` with p as query and s as key; the first one decays the value axis instead. M
counts slots here, not memories.

`gated_slots_step`, `gated_slots_scan` and `gated_slots_chunked` are three forms of one function.
Padding rows must have ``s = 0`` and ``g = 0``.
"""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, scan_rows, to_chunks, transpose
from mom_jax.ops.decays import channel_decays, decayed_values, documents, masked
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.vector_decay import vector_decay, vector_decay_step
from mom_jax.typing import Array, Float

Slots = tuple[Float[Array, "S H K M"], Float[Array, "S H M V"]]


def gated_slots_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    s: Float[Array, "N H M"],
    g: Float[Array, "N H M"],
    state: Slots,
    scale: float,
) -> tuple[Float[Array, "N H V"], Slots]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    keys, values = state
    q, k, slots, decay = (x.astype(jnp.float32) for x in (q, k, s, jnp.exp(g.astype(jnp.float32))))
    keys = decay[..., None, :] * keys + k[..., None] * slots[..., None, :]
    p = jax.nn.softmax(scale * jnp.einsum("nhkm,nhk->nhm", keys, q), -1)
    o, values = vector_decay_step(p, slots, v, g, None, values, 1.0)
    return o, (keys, values)


def gated_slots_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    s: Float[Array, "N H M"],
    g: Float[Array, "N H M"],
    table: ChunkTable,
    initial_state: Slots | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Slots | None]:
    """The recurrence exactly as written, one row after the other; arguments as `gated_slots`."""
    step = functools.partial(gated_slots_step, scale=scale)
    heads, keys, slots, values = q.shape[1], k.shape[-1], s.shape[-1], v.shape[-1]
    sizes = (heads, keys, slots), (heads, slots, values)
    shapes = tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    return scan_rows(step, (q, k, v, s, g), table, initial_state, shapes)


def gated_slots_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    s: Float[Array, "N H M"],
    g: Float[Array, "N H M"],
    table: ChunkTable,
    initial_state: Slots | None,
    scale: float,
    impl: str = "xla",
) -> tuple[Float[Array, "N H V"], Slots | None]:
    """The same function chunk by chunk: two linear passes with a softmax between them, the second by `vector_decay`.

    The backward pass keeps the inputs and what it needs of the first pass's outputs, M values for each row.
    """
    keys, values = (None, None) if initial_state is None else initial_state
    p, keys = _slot_scores(q, k, s, g, table, keys, scale)
    o, values = vector_decay(jax.nn.softmax(p, -1), s, v, g, table, values, scale=1.0, impl=impl)
    return o, None if keys is None or values is None else (keys, values)


@functools.partial(jax.checkpoint, static_argnums=6)
def _slot_scores(q, k, s, g, table, initial_state, scale):
    """The first pass: float32 [N, H, M] and the keys' final state. Inside, states are [M, K]."""
    q, k, s, g = (to_chunks(x, table.chunk_size) for x in (scale * q.astype(jnp.float32), k, s, g))
    decays = channel_decays(g, table)
    update = transpose(decays.leave * s) @ k
    start = None if initial_state is None else transpose(initial_state)
    states, final = border_states(update, decays.across[..., None], table, start)
    earlier = masked(q @ transpose(k), documents(table).between)
    before = decays.enter * (q @ transpose(states)) + decayed_values(earlier, s, decays)
    read = jnp.exp(g) * before + jnp.sum(q * k, -1, keepdims=True) * s
    return from_chunks(read), None if final is None else transpose(final)


def gated_slots(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    s: Float[Array, "N H M"],
    g: Float[Array, "N H M"],
    table: ChunkTable,
    initial_state: Slots | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Slots | None]:
    """Gated slot attention over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows.
        s: how much each slot takes of the token; 0 on padding rows.
        g: log decay of each slot, at most 0, and 0 on padding rows.
        table: segments and documents of the rows.
        initial_state: float32 keys and values of every segment; None starts from 0 and returns no state.
        scale: of the slot scores, K^-0.5 if None.
        impl: ``reference`` (token by token), or that of `vector_decay` for the second pass.

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: ``impl`` is unknown or cannot run here.
    """
    by: float = k.shape[-1] ** -0.5 if scale is None else scale
    run = gated_slots_scan if impl == "reference" else functools.partial(gated_slots_chunked, impl=impl)
    return run(q, k, v, s, g, table, initial_state, by)
