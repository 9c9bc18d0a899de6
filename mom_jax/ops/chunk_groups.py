"""One driver for recurrences whose chunks multiply matrices with the state: chunks in groups, forward and backward.

What a chunk needs besides the state is computed for a whole group of chunks at once; then the group is scanned in
sequence, and the next group follows. A group is as large as fits into a cache, so intermediate results stay there.

The backward pass keeps the inputs, whatever `ChunkForm` asks to keep of each chunk, and one state per group. States
at chunk borders are recomputed, one group at a time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import State, final_states, initial_carry, load, store
from mom_jax.ops.dispatch import target
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float, Shaped
from pallas_kernels.remat import keep

# Floats per array in a group of chunks: about twenty such arrays fit into the caches of a CPU's cores; where all
# chunks of a group run in parallel, larger groups keep the device busy.
_CACHED_FLOATS = 2**17
_PARALLEL_FLOATS = 2**22

Rows = Any  # a tuple of floating arrays [chunks, H, C, ...]
Chunk = Any  # a tuple of arrays: [chunks, H, ...] of a group, [H, ...] of one chunk


# outputs, and the state of every segment
_Results = tuple[Float[Array, "chunks H C V"], Float[Array, "S H K V"] | None]
_Carry = tuple[Float[Array, "H K V"], Float[Array, "slots H K V"] | None]  # the running state, and the stored ones
_Kept = tuple[Any, Any]  # what `ChunkForm` says that backward keeps: of a group, and of its chunks
# rows, table, the state of every segment; and of all groups what was kept, and the state before the first chunk
_Residuals = tuple[Rows, ChunkTable, Float[Array, "S H K V"] | None, tuple[_Kept, Float[Array, "groups H K V"]]]


class ChunkForm(NamedTuple):
    """A recurrence chunk by chunk; S is the state [H, K, V], dS its gradient.

    Attributes:
        saved: ``rows -> rows``, the rows that the backward pass needs.
        prepare: ``(rows, table) -> (chunk, kept)`` for a group: all that does not depend on the state, and the part of
            it to keep for the backward pass.
        forward: ``(chunk, S) -> (S, o, kept)`` for one chunk.
        resume: ``(saved rows, table, kept, do) -> (chunk, pull)`` for a group: the input of the next two, for each
            chunk, and a function from ``(chunk, S before each chunk, results of backward)`` to all rows' gradients.
        advance: ``(chunk, S) -> S`` for one chunk, as in ``forward``.
        backward: ``(chunk, S, dS) -> (dS, gradients)`` for one chunk, from dS after it to dS before it.
    """

    saved: Callable[[Rows], Rows]
    prepare: Callable[[Rows, ChunkTable], tuple[Chunk, Any]]
    forward: Callable[[Chunk, State], tuple[State, Array, Any]]
    resume: Callable[[Rows, ChunkTable, Any, Array], tuple[Chunk, Callable[[Chunk, State, Any], Rows]]]
    advance: Callable[[Chunk, State], State]
    backward: Callable[[Chunk, State, State], tuple[State, Any]]


def _run_in_groups(
    form: ChunkForm, shape: jax.ShapeDtypeStruct, rows: Rows, table: ChunkTable, state: Float[Array, "S H K V"] | None
) -> _Results:
    """Outputs of all chunks, and the state of every segment after its last one.

    Args:
        form: of the recurrence.
        shape: of one state.
        rows: inputs of the recurrence, cut into chunks.
        table: segments and documents of the chunks.
        state: of every segment; None starts from 0 and returns none.
    """
    return _run_fwd(form, shape, rows, table, state)[0]


def _run_fwd(
    form: ChunkForm, shape: jax.ShapeDtypeStruct, rows: Rows, table: ChunkTable, state: Float[Array, "S H K V"] | None
) -> tuple[_Results, _Residuals]:
    body = functools.partial(_forward_group, form)
    (_, stored), (o, *of_groups) = jax.lax.scan(body, initial_carry(state, shape), to_groups(rows, table))
    return (from_groups(o, table), final_states(stored)), (form.saved(rows), table, state, tuple(keep(of_groups)))


def _forward_group(
    form: ChunkForm, carried: _Carry, group: tuple[Rows, ChunkTable]
) -> tuple[_Carry, tuple[Float[Array, "chunks H C V"], _Kept, Float[Array, "H K V"]]]:
    """Outputs of some chunks, and what the backward pass keeps: of each chunk, and the state before the first."""
    rows, table = group
    chunks, kept_of_all = form.prepare(rows, table)

    def body(carried, xs):
        state, stored = carried
        chunk, first, segment, last = xs
        state, o, kept = form.forward(chunk, load(stored, state, segment, first))
        return (state, store(stored, state, segment, last)), (o, kept)

    after, (o, kept) = jax.lax.scan(body, carried, (chunks, table.first, table.segment, table.last))
    return after, (o, (kept_of_all, kept), carried[0])


def _run_bwd(
    form: ChunkForm, shape: jax.ShapeDtypeStruct, residuals: _Residuals, cotangents: _Results
) -> tuple[Rows, None, Float[Array, "S H K V"] | None]:
    rows, table, state, kept = residuals
    do, dfinal = cotangents
    _, start = initial_carry(state, shape)
    groups = (*to_groups((rows, do), table), *kept)
    body = functools.partial(_backward_group, form, start)
    (_, dstored), gradients = jax.lax.scan(body, initial_carry(dfinal, shape), groups, reverse=True)
    return from_groups(gradients, table), None, final_states(dstored)


def _backward_group(
    form: ChunkForm,
    start: Float[Array, "slots H K V"] | None,
    carried: _Carry,
    group: tuple[tuple[Rows, Float[Array, "chunks H C V"]], ChunkTable, _Kept, Float[Array, "H K V"]],
) -> tuple[_Carry, Rows]:
    """Gradients of the rows of some chunks."""
    (rows, do), table, kept, entering = group
    chunks, pull = form.resume(rows, table, kept, do)
    states = _states_before(form, start, entering, chunks, table)

    def body(carried, xs):
        dstate, dstored = carried
        chunk, state, first, segment, last = xs
        dstate, gradients = form.backward(chunk, state, load(dstored, dstate, segment, last))
        return (dstate, store(dstored, dstate, segment, first)), gradients

    xs = (chunks, states, table.first, table.segment, table.last)
    carried, gradients = jax.lax.scan(body, carried, xs, reverse=True)
    return carried, pull(chunks, states, gradients)


run_in_groups = jax.custom_vjp(_run_in_groups, nondiff_argnums=(0, 1))
run_in_groups.defvjp(_run_fwd, _run_bwd)


def _states_before(
    form: ChunkForm,
    start: Float[Array, "slots H K V"] | None,
    entering: Float[Array, "H K V"],
    chunks: Chunk,
    table: ChunkTable,
) -> Float[Array, "chunks H K V"]:
    """The state before each chunk of a group, from that before the first; ``start`` is what segments start from."""

    def body(state, xs):
        chunk, first, segment = xs
        state = load(start, state, segment, first)
        return form.advance(chunk, state), state

    return jax.lax.scan(body, entering, (chunks, table.first, table.segment))[1]


def to_groups(rows: Any, table: ChunkTable) -> tuple[Any, Any]:
    """Groups of consecutive chunks that fit into a cache: arrays [groups, chunks, ...], and a `ChunkTable` of them.

    Empty chunks that belong to no segment fill up the last group.

    Args:
        rows: floating arrays [chunks, H, C, ...].
    """
    widest = max(jax.tree.leaves(rows), key=lambda x: x[0].size)
    floats = _CACHED_FLOATS if target().platform == "cpu" else _PARALLEL_FLOATS
    count = table.segment.shape[0]
    groups = -(-count // max(4, floats // max(widest[0].size, 1)))
    size = -(-count // groups)  # all of one size, so that the last is hardly padded

    def cut(x: Shaped[Array, "chunks *rest"], fill: int = 0) -> Shaped[Array, "groups size *rest"]:
        padding = [(0, groups * size - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding, constant_values=fill).reshape(groups, size, *x.shape[1:])

    reset = None if table.reset is None else cut(table.reset.reshape(count, -1)).reshape(groups, -1)
    tables = dataclasses.replace(
        table,
        segment=cut(table.segment, table.num_segments),
        first=cut(table.first),
        last=cut(table.last),
        count=jnp.broadcast_to(table.count, (groups, table.num_segments)),
        reset=reset,
    )
    return jax.tree.map(cut, rows), tables


def from_groups(rows: Any, table: ChunkTable) -> Any:
    """The inverse of `to_groups` for arrays [groups, chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: table.segment.shape[0]], rows)
