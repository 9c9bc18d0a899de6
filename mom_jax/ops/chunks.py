"""What every recurrence over packed rows shares: rows cut into chunks, and states that segments load and store.

A state is an array [H, ...] or a tuple of them; ``stored`` is the same with a leading axis of
segments and one more slot at its end, which takes what nobody reads. Without stored states
every segment starts from 0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import target, uses_kernels
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float

State = Any  # an array [H, ...] or a tuple of them
Stored = Any  # the same [S + 1, H, ...], or None

# Floats of one array in a group of chunks: some twenty such arrays fit into the caches of a CPU's cores; where all
# chunks of a group run in parallel, more of them keep the device busy.
_CACHED_FLOATS = 2**17
_PARALLEL_FLOATS = 2**22


def to_chunks(x: Float[Array, "N H *rest"], chunk_size: int) -> Float[Array, "chunks H C *rest"]:
    """Cuts rows into chunks, heads first, in float32."""
    x = x.reshape(-1, chunk_size, *x.shape[1:])
    return jnp.moveaxis(x, 2, 1).astype(jnp.float32)


def from_chunks(x: Float[Array, "chunks H C *rest"]) -> Float[Array, "N H *rest"]:
    """The inverse of `to_chunks`."""
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])


def transpose(x: Float[Array, "*batch a b"]) -> Float[Array, "*batch b a"]:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def chunk_rows(time: int, key_dim: int, impl: str) -> int:
    """Rows of a chunk: small keys gain from short chunks in XLA on a CPU, and short rows need no long ones."""
    longest = 32 if key_dim <= 64 and not uses_kernels(impl) else 64
    return min(longest, 1 << (time - 1).bit_length())


def to_groups(rows: Any, table: ChunkTable) -> tuple[Any, ChunkTable]:
    """Consecutive chunks together, as many as a cache holds: arrays [groups, chunks, ...], and the groups' tables.

    Empty chunks of no segment fill the last group.

    Args:
        rows: floating arrays [chunks, H, C, ...].
    """
    widest = max(jax.tree.leaves(rows), key=lambda x: x[0].size)
    floats = _CACHED_FLOATS if target().platform == "cpu" else _PARALLEL_FLOATS
    count = table.segment.shape[0]
    size = min(max(4, floats // max(widest[0].size, 1)), count)
    groups = -(-count // size)

    def cut(x: Array, fill: int = 0) -> Array:
        padding = [(0, groups * size - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding, constant_values=fill).reshape(groups, size, *x.shape[1:])

    reset = None if table.reset is None else cut(table.reset.reshape(count, -1)).reshape(groups, -1)
    tables = dataclasses.replace(
        table, segment=cut(table.segment, table.num_segments), first=cut(table.first), last=cut(table.last), reset=reset
    )
    return jax.tree.map(cut, rows), tables


def from_groups(rows: Any, table: ChunkTable) -> Any:
    """The inverse of `to_groups` for arrays [groups, chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: table.segment.shape[0]], rows)


def initial_carry(initial: Any, shapes: Any) -> tuple[State, Stored]:
    """A state of zeros of ``shapes`` (`jax.ShapeDtypeStruct`) to start from, and the stored states."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    if initial is None:
        return zeros, None
    return zeros, jax.tree.map(lambda a: jnp.pad(a.astype(jnp.float32), ((0, 1),) + ((0, 0),) * (a.ndim - 1)), initial)


def final_states(stored: Stored) -> Any:
    """The states of all segments."""
    return None if stored is None else jax.tree.map(lambda a: a[:-1], stored)


def load(stored: Stored, state: State, segment: Array, when: Array) -> State:
    """The state of ``segment`` where ``when`` holds, else the running one."""
    if stored is None:
        return jax.tree.map(lambda a: jnp.where(when, 0.0, a), state)
    return jax.tree.map(lambda s, a: jnp.where(when, s[segment], a), stored, state)


def store(stored: Stored, state: State, segment: Array, when: Array | bool) -> Stored:
    """Writes ``state`` in place where ``when`` holds, else into the spare slot."""
    if stored is None:
        return None
    return jax.tree.map(lambda s, a: s.at[jnp.where(when, segment, s.shape[0] - 1)].set(a), stored, state)


def matrix_state(k: Float[Array, "N H K"], v: Float[Array, "N H V"]) -> jax.ShapeDtypeStruct:
    """The state [H, K, V] of rows or chunks of keys and values."""
    return jax.ShapeDtypeStruct((k.shape[1], k.shape[-1], v.shape[-1]), jnp.float32)


def scan_rows(
    step: Callable[..., tuple[Array, State]],
    rows: Sequence[Array | None],
    table: ChunkTable,
    initial_state: Any,
    shapes: Any,
) -> tuple[Float[Array, "N H V"], Any]:
    """The reference form of every recurrence: its ``step``, one row after the other.

    Args:
        step: ``(*row, state) -> (output, state)`` for a batch of rows, each with its own state.
        rows: the arguments of ``step`` for all rows [N, ...]; None stays None.
        table: segments and documents of the rows.
        initial_state: the state of every segment [S, ...], or None to start from 0.
        shapes: of one state, without the axis of segments.
    """
    length = table.segment.shape[0] * table.chunk_size
    begins = jnp.zeros(length, bool).at[:: table.chunk_size].set(table.first)
    segment = jnp.repeat(table.segment, table.chunk_size)
    forget = jnp.zeros(length, bool) if table.reset is None else table.reset

    def body(carried, xs):
        state, stored = carried
        row, begins_t, segment_t, forget_t = xs
        state = load(stored, state, segment_t, begins_t)
        state = jax.tree.map(lambda a: jnp.where(forget_t, 0.0, a)[None], state)
        o, state = step(*jax.tree.map(lambda x: x[None], row), state)
        state = jax.tree.map(lambda a: a[0], state)
        return (state, store(stored, state, segment_t, True)), o[0]

    xs = (tuple(rows), begins, segment, forget)
    (_, stored), o = jax.lax.scan(body, initial_carry(initial_state, shapes), xs)
    return o, final_states(stored)


def states_before(
    advance: Callable[[Any, State, Any], State],
    start: Stored,
    entering: State,
    chunks: tuple[Any, Any],
    table: ChunkTable,
) -> State:
    """The state before each chunk of a group, from that before the first.

    Args:
        advance: ``(chunk, state, written) -> state``: that after a chunk.
        start: what segments start from.
        entering: the state before the group.
        chunks: ``chunk`` and ``written`` of all chunks.
        table: of the group.
    """

    def body(state, xs):
        (chunk, written), first, segment = xs
        state = load(start, state, segment, first)
        return advance(chunk, state, written), state

    return jax.lax.scan(body, entering, (chunks, table.first, table.segment))[1]


@jax.custom_vjp
def border_states(
    update: Float[Array, "chunks H K V"],
    across: Float[Array, "chunks H #K 1"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
) -> tuple[Float[Array, "chunks H K V"], Float[Array, "S H K V"] | None]:
    """States at chunk borders of ``S' = across * S + update``: what enters each chunk, and the final ones."""

    def body(carried, xs):
        state, stored = carried
        update_c, across_c, first, segment, last = xs
        entering = load(stored, state, segment, first)
        state = across_c * entering + update_c
        return (state, store(stored, state, segment, last)), entering

    shape = jax.ShapeDtypeStruct(update.shape[1:], jnp.float32)
    xs = (update, across, table.first, table.segment, table.last)
    (_, stored), states = jax.lax.scan(body, initial_carry(initial_state, shape), xs)
    return states, final_states(stored)


def _border_states_fwd(update, across, table, initial_state):
    states, last = border_states(update, across, table, initial_state)
    return (states, last), (states, across, table)


def _border_states_bwd(residuals, cotangents):
    states, across, table = residuals
    dstates, dfinal = cotangents

    def body(carried, xs):
        dstate, dstored = carried
        dstate_c, across_c, first, segment, last = xs
        leaving = load(dstored, dstate, segment, last)
        dstate = across_c * leaving + dstate_c
        return (dstate, store(dstored, dstate, segment, first)), leaving

    shape = jax.ShapeDtypeStruct(states.shape[1:], jnp.float32)
    xs = (dstates, across, table.first, table.segment, table.last)
    (_, dstored), dupdate = jax.lax.scan(body, initial_carry(dfinal, shape), xs, reverse=True)
    axes = tuple(i for i in range(-2, 0) if across.shape[i] == 1)
    return dupdate, jnp.sum(dupdate * states, axes, keepdims=True), None, final_states(dstored)


border_states.defvjp(_border_states_fwd, _border_states_bwd)


def scan_chunks(
    body: Callable[[Any, State, Any], tuple[State, Any]],
    shapes: Any,
    parameters: Any,
    xs: Any,
    table: ChunkTable,
    initial_state: Any,
) -> tuple[Any, Any]:
    """Runs ``body`` over chunks; its backward pass keeps the state before each chunk and runs the chunk again.

    Args:
        body: ``(parameters, state, x) -> (state, y)`` of one chunk.
        shapes: of one state, without the axis of segments.
        parameters: floating arrays that all chunks share.
        xs: floating arrays [chunks, ...].
        table: segments of the chunks.
        initial_state: the state of every segment, or None to start from 0.

    Returns:
        The stacked ``y``, and the state of every segment after its last chunk, or None.
    """
    return _scan_chunks(body, shapes, parameters, xs, table, initial_state)


def _run_chunks(body, shapes, parameters, xs, table, initial_state) -> tuple[Any, Any]:
    return _scan_chunks_fwd(body, shapes, parameters, xs, table, initial_state)[0]


def _scan_chunks_fwd(body, shapes, parameters, xs, table, initial_state):
    def forward(carried, chunk):
        state, stored = carried
        x, first, segment, last = chunk
        entering = load(stored, state, segment, first)
        state, y = body(parameters, entering, x)
        return (state, store(stored, state, segment, last)), (entering, y)

    chunks = (xs, table.first, table.segment, table.last)
    (_, stored), (states, ys) = jax.lax.scan(forward, initial_carry(initial_state, shapes), chunks)
    return (ys, final_states(stored)), (parameters, xs, table, states)


def _scan_chunks_bwd(body, shapes, residuals, cotangents):
    parameters, xs, table, states = residuals
    dys, dfinal = cotangents

    def backward(carried, chunk):
        (dstate, dstored), dparameters = carried
        x, state, dy, first, segment, last = chunk
        leaving = load(dstored, dstate, segment, last)
        own, dstate, dx = jax.vjp(body, parameters, state, x)[1]((leaving, dy))
        dparameters = jax.tree.map(jnp.add, dparameters, own)
        return ((dstate, store(dstored, dstate, segment, first)), dparameters), dx

    chunks = (xs, states, dys, table.first, table.segment, table.last)
    init = (initial_carry(dfinal, shapes), jax.tree.map(jnp.zeros_like, parameters))
    ((_, dstored), dparameters), dxs = jax.lax.scan(backward, init, chunks, reverse=True)
    return dparameters, dxs, None, final_states(dstored)


_scan_chunks = jax.custom_vjp(_run_chunks, nondiff_argnums=(0, 1))
_scan_chunks.defvjp(_scan_chunks_fwd, _scan_chunks_bwd)
