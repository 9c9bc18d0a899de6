"""States that memories begin with, at the start of every document, beside a recurrence that begins with nothing.

A state S_0 that only decays is ``Z_t = D_t S_0``, with D_t all decays since the document began. What a delta rule does
to it besides, it does at the key that it writes with: it erases what another key reads. So that is taken from the
values instead, the recurrence runs from 0 for what is left of the state, and its rows read Z besides. A
`mom_jax.ops.primitive.Primitive` declares in ``beside`` what its rows read and what they erase.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Rows
from mom_jax.ops.segment_rows import opens_segment
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float


class Beginning(NamedTuple):
    """What a recurrence is given in the place of states to begin with."""

    rows: Rows  # to be run from 0
    reads: Float[Array, "N H V"]  # to be added to outputs, but for their scale
    left: Float[Array, "S H K V"]  # to be added to final states


def begin_with(
    primitive: Primitive, rows: Rows, table: ChunkTable, states: Float[Array, "G H K V"], *, goes_on: bool
) -> Beginning:
    """Lets every document begin with the state of its memory.

    Args:
        primitive: one with ``beside``.
        rows: its rows, inert where they are padding.
        table: of G memories' segments, memory by memory.
        states: of the memories.
        goes_on: segments begin with a document of an earlier call, whose state is given elsewhere.
    """
    assert primitive.beside is not None
    opens = opens_segment(table)
    starts = jnp.zeros_like(opens) if table.reset is None else table.reset
    before, behind = _decays(_kept(rows), opens | starts, starts if goes_on else opens | starts)
    of_segment = jnp.repeat(states, table.num_segments // states.shape[0], axis=0)
    of_chunk = of_segment.at[table.segment].get(mode="clip")

    def read(x: Float[Array, "N H K"]) -> Float[Array, "N H V"]:
        x = (before * x).reshape(-1, table.chunk_size, *x.shape[1:])
        return jnp.einsum("cthk,chkv->cthv", x, of_chunk).reshape(*rows.q.shape[:2], -1)

    rows, reads = primitive.beside(rows, read)
    ends = jnp.where(table.last, table.segment, table.num_segments)
    left = jnp.zeros((table.num_segments, *behind.shape[1:]), behind.dtype)
    left = left.at[ends].set(behind[table.chunk_size - 1 :: table.chunk_size], mode="drop")
    return Beginning(rows, reads, left[..., None] * of_segment)


def _kept(rows: Rows) -> Float[Array, "N H _"]:
    """Decays of heads or channels."""
    if rows.g is None:
        return jnp.ones((*rows.q.shape[:2], 1))
    kept = jnp.exp(widened(rows.g))
    return kept if kept.ndim == rows.q.ndim else kept[..., None]


def _decays(
    kept: Float[Array, "N H _"], anew: Bool[Array, " N"], begins: Bool[Array, " N"]
) -> tuple[Float[Array, "N H _"], Float[Array, "N H _"]]:
    """All decays since the last row that ``begins``, before and behind each row; 0 from a row that only is ``anew``."""
    first = begins[:, None, None].astype(kept.dtype)
    anew = anew[:, None, None]

    def joined(earlier, later):
        (one, _), (other, restarts) = earlier, later
        return jnp.where(restarts, other, one * other), earlier[1] | restarts

    behind, _ = jax.lax.associative_scan(joined, (jnp.where(anew, first * kept, kept), anew))
    return jnp.where(anew, first, jnp.roll(behind, 1, 0)), behind
