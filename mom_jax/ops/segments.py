"""Packing by counting: every (memory, batch row) pair becomes one segment of a flat list of rows.

A token's place in a memory is the number of earlier tokens of its row that chose the same
memory: an exclusive cumulative count, stable by construction, without a sort, without a
dropped token and without a shape that depends on data. Segments are ordered memory-major,
``s = g * B + b``, and each begins at a multiple of the chunk size, so that a chunk belongs to
one segment and the rows of one memory are contiguous.

The shared memory is one more memory that every token chooses, so it needs no second path.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mom_jax.ops.documents import DocumentRuns
from mom_jax.ops.pieces import Piece
from mom_jax.ops.precision import widened
from mom_jax.typing import Array, Bool, Float, Int, Mask, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkTable:
    """What a recurrence needs to know about the packed rows; it drives every backend."""

    segment: Int[Array, " chunks"]  # the segment of each chunk; S for the unused chunks at the end
    first: Bool[Array, " chunks"]  # first chunk of its segment: the state is loaded
    last: Bool[Array, " chunks"]  # last chunk of its segment: the state is stored
    count: Int[Array, " S"]  # chunks of each segment
    reset: Bool[Array, " N"] | None  # rows that begin a new document: the state before them is forgotten
    chunk_size: int = dataclasses.field(metadata={"static": True})
    num_segments: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """A permutation between tokens and packed rows, with N rows for B x T x A assignments."""

    row: Int[Array, "B T A"]  # packed row of each assignment; N for masked tokens and places without a memory
    assignment: Int[Array, " N"]  # flat index into B x T x A; B*T*A for the padding rows
    start: Int[Array, " S"]  # first row of each segment
    length: Int[Array, " S"]  # tokens in each segment, may be 0
    position: Int[Array, " N"]  # place inside the segment (padding rows count on)
    group_sizes: Int[Array, " G"]  # rows of each memory, alignment included
    table: ChunkTable
    piece: Piece | None = None  # of rows that are spread over devices

    @property
    def token(self) -> Int[Array, " N"]:
        """Flat token index b * T + t of each row; B*T for padding rows."""
        return self.assignment // self.row.shape[-1]

    @property
    def valid(self) -> Bool[Array, " N"]:
        """Rows that hold a token."""
        return self.assignment < self.row.size


def packed_length(
    batch: int, time: int, top_k: int, num_memories: int, shared: bool, chunk_size: int, capacity: int | None = None
) -> int:
    """The static number of packed rows N that holds every possible routing of ``capacity`` tokens at most (all)."""
    worst = (time * top_k + min(num_memories, time * top_k) * (chunk_size - 1)) // chunk_size
    most = time if capacity is None else min(time, capacity)
    chunks = min(worst, num_memories * -(-most // chunk_size)) + (-(-time // chunk_size) if shared else 0)
    return batch * chunks * chunk_size


def plan_packing(
    memories: Int[Array, "B T k"],
    num_memories: int,
    *,
    shared: bool,
    chunk_size: int,
    attention_mask: Mask | None = None,
    documents: DocumentRuns | None = None,
    axis: str | None = None,
    capacity: int | None = None,
) -> Packing:
    """Lays the tokens of every memory out as contiguous, chunk-aligned segments.

    Args:
        memories: the distinct memories each token goes to, in [0, num_memories); -1 for none.
        num_memories: routed memories M.
        shared: append the shared memory, index M, to every token's choices.
        chunk_size: alignment of segments, in rows.
        attention_mask: 0 marks tokens that go to no memory.
        documents: the state is forgotten between two neighbours of a memory's own sequence that are of
            different documents. Incoming states hold document 0.
        axis: of the mesh, over which rows are spread; then documents are counted from the piece before.
        capacity: tokens of a row that a routed memory gets at most, where that is known to be fewer than all.
    """
    batch, time, top_k = memories.shape
    if shared:
        memories = jnp.concatenate([memories, jnp.full((batch, time, 1), num_memories, memories.dtype)], -1)
    groups = num_memories + shared
    keep = jnp.ones((batch, time), bool) if attention_mask is None else attention_mask != 0
    if time == chunk_size == 1:
        packing = _plan_one_token(memories[:, 0], groups, keep, documents)
    else:
        rows = packed_length(batch, time, top_k, num_memories, shared, chunk_size, capacity)
        packing = _plan_rows(memories, groups, keep, documents, rows, chunk_size)
    return packing if axis is None else dataclasses.replace(packing, piece=_piece(packing, documents, axis))


def _plan_rows(
    memories: Int[Array, "B T A"],
    groups: int,
    keep: Bool[Array, "B T"],
    documents: DocumentRuns | None,
    rows: int,
    chunk_size: int,
) -> Packing:
    """`plan_packing` of any number of tokens, by counting; the shared memory is among their choices."""
    batch = keep.shape[0]
    choices = (memories[..., j, None] == jnp.arange(groups) for j in range(memories.shape[-1]))
    hits = functools.reduce(jnp.logical_or, choices) & keep[..., None]
    count = jnp.cumsum(hits, axis=1, dtype=jnp.int32)  # [B, T, G], inclusive
    length = count[:, -1].T.reshape(-1)
    chunks = -(-length // chunk_size)
    end_chunk = jnp.cumsum(chunks)
    start = (end_chunk - chunks) * chunk_size

    place = jnp.take_along_axis(count, memories, axis=-1) - 1
    segment_of = memories * batch + jnp.arange(batch)[:, None, None]
    row = jnp.where(keep[..., None] & (memories >= 0), start[segment_of] + place, rows)
    assignment = jnp.full(rows, row.size, jnp.int32)
    assignment = assignment.at[row.reshape(-1)].set(jnp.arange(row.size, dtype=jnp.int32), mode="drop")

    chunk = jnp.arange(rows // chunk_size)
    segment = segment_of.reshape(-1).at[assignment[::chunk_size]].get(mode="fill", fill_value=groups * batch)
    position = jnp.arange(rows) - jnp.repeat(start.at[segment].get(mode="clip"), chunk_size)
    reset = None
    if documents is not None:
        index = documents.index.reshape(-1).at[assignment // row.shape[-1]].get(mode="clip")
        reset = (index != jnp.where(position == 0, 0, jnp.roll(index, 1))) & (assignment < row.size)
    table = ChunkTable(
        segment=segment,
        first=chunk * chunk_size == start.at[segment].get(mode="clip"),
        last=chunk + 1 == end_chunk.at[segment].get(mode="clip"),
        count=chunks,
        reset=reset,
        chunk_size=chunk_size,
        num_segments=groups * batch,
    )
    group_sizes = (chunks * chunk_size).reshape(groups, batch).sum(-1)
    return Packing(row, assignment, start, length, position, group_sizes, table)


def _piece(packing: Packing, documents: DocumentRuns | None, axis: str) -> Piece:
    if documents is None:
        return Piece(None, None, axis)
    current = ends_in_last_document(packing, documents)
    begun = jnp.broadcast_to(documents.index[:, -1] > 0, current.shape)
    return Piece(begun.reshape(-1), current.reshape(-1), axis)


def ends_in_last_document(packing: Packing, documents: DocumentRuns) -> Bool[Array, "G B"]:
    """Whether what each memory of each row holds at last is of the row's last document."""
    last = packing.assignment.at[packing.start + packing.length - 1].get(mode="clip") // packing.row.shape[-1]
    written = documents.index.reshape(-1).at[last].get(mode="clip")
    written = jnp.where(packing.length > 0, written, 0).reshape(-1, documents.index.shape[0])
    return written == documents.index[:, -1]


def _plan_one_token(
    memories: Int[Array, "B A"], groups: int, keep: Bool[Array, "B 1"], documents: DocumentRuns | None
) -> Packing:
    """The same for one token of each row, in rows of their own (N = B x A): places by comparing each with all.

    Decoding plans anew at every step, where running counts and a scatter would be a dozen launches of nothing.
    """
    (batch, slots), segments, rows = memories.shape, groups * memories.shape[0], memories.size
    known = keep & (memories >= 0)
    segment_of = jnp.where(known, memories * batch + jnp.arange(batch)[:, None], segments).reshape(-1)
    row = jnp.sum(segment_of < segment_of[:, None], -1, dtype=jnp.int32)
    row = jnp.where(segment_of < segments, row, rows)
    is_there = row == jnp.arange(rows)[:, None]
    assignment = jnp.min(jnp.where(is_there, jnp.arange(rows), rows), -1)
    segment = jnp.min(jnp.where(is_there, segment_of, segments), -1)
    every = jnp.arange(segments)[:, None]
    length = jnp.sum(segment_of == every, -1, dtype=jnp.int32)
    used, reset = segment < segments, None
    if documents is not None:
        reset = used & (documents.index[:, 0].at[assignment // slots].get(mode="clip") != 0)
    return Packing(
        row=row.reshape(batch, 1, slots),
        assignment=assignment,
        start=jnp.sum(segment_of < every, -1, dtype=jnp.int32),
        length=length,
        position=jnp.zeros(rows, jnp.int32),
        group_sizes=length.reshape(groups, batch).sum(-1),
        table=ChunkTable(segment, used, used, length, reset, chunk_size=1, num_segments=segments),
    )


@jax.custom_vjp
def pack(x: Shaped[Array, "B T *rest"], packing: Packing) -> Shaped[Array, "N *rest"]:
    """Gathers token values into packed rows; padding rows are 0.

    The gradient gathers through the inverse permutation; there is no scatter.
    """
    tokens = x.reshape(-1, *x.shape[2:])
    return tokens.at[packing.token].get(mode="fill", fill_value=0)


def _pack_fwd(x: Shaped[Array, "B T *rest"], packing: Packing) -> tuple[Shaped[Array, "N *rest"], Packing]:
    return pack(x, packing), packing


def _pack_bwd(packing: Packing, dy: Float[Array, "N *rest"]) -> tuple[Float[Array, "B T *rest"], None]:
    return functools.reduce(jnp.add, _at_places(dy, packing)), None


pack.defvjp(_pack_fwd, _pack_bwd)


def _at_places(y: Float[Array, "N *rest"], packing: Packing) -> Iterator[Float[Array, "B T *rest"]]:
    """What stands in the row of each of a token's places, place by place; 0 where there is none."""
    for j in range(packing.row.shape[-1]):
        yield y.at[packing.row[..., j]].get(mode="fill", fill_value=0)


@jax.custom_vjp
def unpack_mix(
    y: Float[Array, "N *rest"], weights: Float[Array, "B T A *heads"], packing: Packing
) -> Float[Array, "B T *rest"]:
    """Reads every token's rows back and mixes them: ``sum_j weights[b, t, j] * y[row[b, t, j]]``.

    Weights are of whole rows, or of each of their heads. Masked tokens read exactly 0. Sums in float32 or
    wider, returns ``y.dtype``.
    """
    places = enumerate(_at_places(y, packing))
    weighted = (widened(rows) * _expand(weights[:, :, j], rows.ndim) for j, rows in places)
    return functools.reduce(jnp.add, weighted).astype(y.dtype)


def _expand(x: Shaped[Array, "*shape"], ndim: int) -> Shaped[Array, "..."]:
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def _unpack_mix_fwd(
    y: Float[Array, "N *rest"], weights: Float[Array, "B T A *heads"], packing: Packing
) -> tuple[Float[Array, "B T *rest"], tuple[Float[Array, "N *rest"], Float[Array, "B T A *heads"], Packing]]:
    return unpack_mix(y, weights, packing), (y, weights, packing)


def _unpack_mix_bwd(
    residuals: tuple[Float[Array, "N *rest"], Float[Array, "B T A *heads"], Packing], do: Float[Array, "B T *rest"]
) -> tuple[Float[Array, "N *rest"], Float[Array, "B T A *heads"], None]:
    y, weights, packing = residuals
    rest = tuple(range(weights.ndim - 1, do.ndim))
    dweights = [jnp.sum(widened(rows) * do, rest) for rows in _at_places(y, packing)]
    weight = _of_rows(weights, packing.row)
    weight = weight.reshape(-1, *weight.shape[3:]).at[packing.assignment].get(mode="fill", fill_value=0)
    dy = do.reshape(-1, *do.shape[2:]).at[packing.token].get(mode="fill", fill_value=0)
    dy = (widened(dy) * _expand(weight, dy.ndim)).astype(y.dtype)
    return dy, jnp.stack(dweights, 2).astype(weights.dtype), None


def _of_rows(weights: Float[Array, "B T A *heads"], row: Int[Array, "B T A"]) -> Float[Array, "B T A *heads"]:
    """What the row of each assignment counts in all, where a token chose a memory twice."""
    same = row[..., None] == row[:, :, None]
    return jnp.sum(jnp.where(_expand(same, weights.ndim + 1), weights[:, :, None], 0), 3)


unpack_mix.defvjp(_unpack_mix_fwd, _unpack_mix_bwd)
