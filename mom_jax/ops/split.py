"""Rows cut in time: pieces run side by side from empty memories, and then add what they read of those before.

Kernels keep a block of a segment's state and run through its chunks one after the other. So a GPU has a program for
each segment, head and 64 values, and few, long segments leave most of it idle. Pieces of a segment are affine maps of
the state before them (`mom_jax.ops.handover`): composed, in rounds in which neighbours join, they give that state,
exactly. It takes about two and a half times the work, in a fraction of the steps that wait for each other.

Rows whose pieces lie on several devices are put together in the same way (`mom_jax.layers.recurrence`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import Target, on_gpu, target
from mom_jax.ops.handover import Affine, composed
from mom_jax.ops.primitive import Primitive, Rows, State
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int

# Multiprocessors by generation of GPU.
_MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
_VALUES = 64  # of a kernel's program
_WORTH = 4  # pieces of a segment that outweigh the work they add
_SHORTEST = 16  # chunks of a piece, whose map takes about as much work as a few of them


class Alone(NamedTuple):
    """Segments that began with empty memories."""

    o: Float[Array, "N H V"]
    reads: Float[Array, "N H K"]  # as of `mom_jax.ops.handover.Handover`
    map: Affine


def alone(primitive: Primitive, rows: Rows, table: ChunkTable, scale: float, impl: str) -> Alone:
    """Runs every segment from an empty memory; the primitive has a ``handover``."""
    assert primitive.handover is not None
    shape = primitive.state_of(rows)
    empty = jnp.zeros((table.num_segments, *shape.shape), shape.dtype)
    o, added = primitive(rows, table, empty, scale=scale, impl=impl)
    reads, kept = primitive.handover(primitive, rows, table, scale, impl)
    return Alone(o, reads, Affine(kept, added))


def with_states(of: Alone, table: ChunkTable, before: Float[Array, "S H K V"], impl: str) -> Float[Array, "N H V"]:
    """The outputs of segments that began with states: a memory that is read and not written."""
    silent = ScalarDecayRows(of.reads.astype(of.o.dtype), jnp.zeros_like(of.reads, of.o.dtype), jnp.zeros_like(of.o))
    return of.o + SCALAR_DECAY(silent, table, before, scale=1.0, impl=impl)[0]


def run(
    primitive: Primitive, rows: Rows, table: ChunkTable, state: State, scale: float, impl: str
) -> tuple[Float[Array, "N H V"], State]:
    """Runs a recurrence, in pieces where that keeps a GPU busy. Arguments and results as of `Primitive.__call__`."""
    chunks = piece_length(primitive, rows, table, target()) if on_gpu(impl) else None
    if chunks is None:
        return primitive(rows, table, state, scale=scale, impl=impl)
    return in_pieces(primitive, rows, table, state, scale, impl, chunks)


def piece_length(primitive: Primitive, rows: Rows, table: ChunkTable, device: Target) -> int | None:
    """Chunks of a piece, so that there is about one program for each multiprocessor; None: segments stay whole."""
    if not primitive.split or device.platform != "gpu" or not device.has_kernels:
        return None
    heads, widest = rows.v.shape[1], max(rows.v.shape[-1], rows.k.shape[-1])
    pieces = _MULTIPROCESSORS[str(device.generation)] // (heads * -(-widest // _VALUES))
    if pieces < _WORTH * table.num_segments:
        return None
    chunks = table.segment.shape[0]
    length = max(_SHORTEST, -(-chunks // (pieces - table.num_segments)))
    return length if chunks >= _WORTH * length * table.num_segments else None


class _Cut(NamedTuple):
    table: Any  # the `ChunkTable` of pieces, each a segment
    segment: Int[Array, " P"]  # of each piece; S for those that are not used
    opens: Bool[Array, " P"]  # the first piece of its segment
    last: Int[Array, " S"]  # last piece of each segment that has one


def _cut(table: ChunkTable, length: int) -> _Cut:
    """The table of pieces of ``length`` chunks at most."""
    chunks, segments = table.segment.shape[0], table.num_segments
    pieces = min(chunks, (chunks + segments * (length - 1)) // length)
    start = jnp.cumsum(table.count) - table.count
    place = (jnp.arange(chunks) - start.at[table.segment].get(mode="clip")) % length
    used = table.segment < segments
    first = used & (place == 0)
    piece = jnp.where(used, jnp.cumsum(first, dtype=jnp.int32) - 1, pieces)
    segment = jnp.full(pieces, segments).at[piece].set(table.segment, mode="drop")
    cut = dataclasses.replace(
        table,
        segment=piece,
        first=first,
        last=used & (table.last | (place == length - 1)),
        count=jnp.zeros(pieces, table.count.dtype).at[piece].add(1, mode="drop"),
        num_segments=pieces,
    )
    opens = (segment < segments) & (segment != jnp.roll(segment, 1).at[0].set(-1))
    return _Cut(cut, segment, opens, jnp.cumsum(-(-table.count // length)) - 1)


def in_pieces(
    primitive: Primitive,
    rows: Rows,
    table: ChunkTable,
    state: Float[Array, "S H K V"] | None,
    scale: float,
    impl: str,
    length: int,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same with pieces of ``length`` chunks.

    Args:
        primitive: has a ``handover``.
        rows, table, state, scale, impl: as of `Primitive.__call__`.
        length: chunks of a piece, at most.
    """
    cut = _cut(table, length)
    of = alone(primitive, rows, cut.table, scale, impl)
    begins = jnp.zeros_like(of.map.added) if state is None else state.at[cut.segment].get(mode="fill", fill_value=0)
    opens = cut.opens[:, None, None, None]
    # From a segment's first piece on, the state is known: the map of that piece takes it from nowhere.
    first = composed(Affine(jnp.zeros_like(of.map.kept), begins), of.map)
    after = jax.lax.associative_scan(composed, jax.tree.map(lambda a, b: jnp.where(opens, a, b), first, of.map)).added
    before = jnp.where(opens, begins, jnp.roll(after, 1, 0))
    o = with_states(of, cut.table, before, impl)
    if state is None:
        return o, None
    return o, jnp.where(table.count[:, None, None, None] > 0, after.at[cut.last].get(mode="clip"), state)
