"""Rows and their places in segments and documents, from a table alone."""

import jax
import jax.numpy as jnp

from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int


def opens_segment(table: ChunkTable) -> Bool[Array, " N"]:
    """Rows that are the first of their segment."""
    length = table.segment.shape[0] * table.chunk_size
    return jnp.zeros(length, bool).at[:: table.chunk_size].set(table.first)


def row_before(
    x: Float[Array, "N H F"], carried: Float[Array, "S H F"] | None, table: ChunkTable
) -> Float[Array, "N H F"]:
    """What the row before holds: ``carried`` of the segment in its first row, 0 in a document's first one."""
    shifted = jnp.where(opens_segment(table)[:, None, None], 0, jnp.roll(x, 1, 0))
    if carried is not None:
        firsts = shifted[:: table.chunk_size]
        known = jnp.where(table.first[:, None, None], carried.at[table.segment].get(mode="clip"), firsts)
        shifted = shifted.at[:: table.chunk_size].set(known)
    return shifted if table.reset is None else jnp.where(table.reset[:, None, None], 0, shifted)


def row_behind(x: Float[Array, "N H F"], table: ChunkTable) -> Float[Array, "N H F"]:
    """What the next row holds, 0 in the last row of a segment or document."""
    begins = opens_segment(table) if table.reset is None else opens_segment(table) | table.reset
    begins = begins.at[0].set(True)
    return jnp.roll(jnp.where(begins[:, None, None], 0, x), -1, 0)


def first_rows(table: ChunkTable) -> Int[Array, " S"]:
    """The first row of each segment, N where there is none."""
    chunks, rows = table.segment.shape[0], table.segment.shape[0] * table.chunk_size
    segment = jnp.where(table.first, table.segment, table.num_segments)
    return jnp.full(table.num_segments + 1, rows).at[segment].min(jnp.arange(chunks) * table.chunk_size)[:-1]


def last_rows(valid: Bool[Array, " N"], table: ChunkTable) -> Int[Array, " S"]:
    """The last row of each segment that holds a token, -1 where there is none."""
    number = jnp.where(valid, jnp.arange(valid.shape[0]), -1)
    segment = jnp.repeat(table.segment, table.chunk_size)
    return jnp.full(table.num_segments + 1, -1).at[segment].max(number)[:-1]


def place_in_document(count: Int[Array, " S"] | None, table: ChunkTable) -> Int[Array, " N"]:
    """How many tokens of its document the segment holds before each row; ``count`` of them before its first row."""
    number, opens = jnp.arange(table.segment.shape[0] * table.chunk_size), opens_segment(table)
    reset = jnp.zeros_like(opens) if table.reset is None else table.reset
    begin = jax.lax.cummax(jnp.where(opens | reset, number, 0))
    place = number - begin
    if count is None:
        return place
    before = count.at[jnp.repeat(table.segment, table.chunk_size)].get(mode="clip")
    return place + jnp.where(reset[begin], 0, before)
