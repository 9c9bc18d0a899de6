"""How a recurrence goes on from a state that it learns of only afterwards: of another device that ran the rows before.

Every recurrence here is affine in its state. A segment of rows that started from 0 is therefore mended without being
run again once the state S before it is known: its rows read ``S^T reads`` besides, and it leaves ``kept S`` besides. A
`mom_jax.ops.primitive.Primitive` declares how these are found.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, to_chunks
from mom_jax.ops.decays import channel_decays
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Rows
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float


class Handover(NamedTuple):
    """What becomes of the state before each segment."""

    reads: Float[Array, "N H K"]  # a row reads S^T reads, the scale of outputs included
    kept: Float[Array, "S H _ _"]  # [K, K] of its effect on the columns of S; [K, 1] or [1, 1]: a decay of its rows


class Affine(NamedTuple):
    """The map ``S -> kept S + added`` of each segment."""

    kept: Float[Array, "S H _ _"]  # as of `Handover`
    added: Float[Array, "S H K V"]


def composed(earlier: Affine, later: Affine) -> Affine:
    """First the one, then the other."""
    return Affine(_applied(later.kept, earlier.kept), _applied(later.kept, earlier.added) + later.added)


def _applied(kept: Float[Array, "S H _ _"], x: Float[Array, "S H rows columns"]) -> Float[Array, "S H rows columns"]:
    return kept * x if kept.shape[-1] == 1 else jnp.matmul(kept, x, precision="highest")


def by_columns(primitive: Primitive, rows: Rows, table: ChunkTable, scale: float, impl: str) -> Handover:
    """For any recurrence that is linear in a matrix state and treats its columns alike.

    The recurrence itself, run without values from the identity, makes of it the matrix that it makes any state of.
    """
    keys = rows.k.shape[-1]
    identity = jnp.eye(keys, dtype=widened(rows.v).dtype)
    state = jnp.broadcast_to(identity, (table.num_segments, rows.v.shape[1], keys, keys))
    empty = rows._replace(v=jnp.zeros((*rows.v.shape[:-1], keys), rows.v.dtype))
    return Handover(*primitive(empty, table, state, scale=scale, impl=impl))


def by_decays(primitive: Primitive, rows: Rows, table: ChunkTable, scale: float, impl: str) -> Handover:
    """For states that only decay, by the log gates ``rows.g`` of heads or key channels: products of decays."""
    assert primitive.transition is not None
    token = primitive.transition(rows)
    g = jnp.zeros(rows.v.shape[:2]) if rows.g is None else rows.g
    # [chunks, H, C, K or 1]
    decays = channel_decays(to_chunks(g if g.ndim == 3 else g[..., None], table.chunk_size), table)
    across = decays.across[..., None]
    whole = jnp.ones((table.num_segments, *across.shape[1:]), across.dtype)
    entering, kept = border_states(jnp.zeros_like(across), across, table, whole)
    passed = from_chunks(decays.enter * jnp.swapaxes(entering, -1, -2))
    return Handover(scale * passed * token.r, kept)
