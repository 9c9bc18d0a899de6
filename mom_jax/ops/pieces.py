"""Rows whose tokens are spread over devices in pieces, and how a piece learns what the pieces before it leave behind.

For use inside `jax.shard_map`. A piece is a map from what comes before it to what is behind it. Maps of neighbours
compose to one of the same kind, so each device knows what came before it after log2 of their number exchanges with
one neighbour each: nobody gathers what all devices hold.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mom_jax.ops.documents import DocumentRuns
from mom_jax.typing import Array, Bool, Int

Map = TypeVar("Map")  # a tree of arrays; zeros are what comes before the first piece


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Piece:
    """Segments that go on from the device before and on the device behind."""

    begun: Bool[Array, " S"] | None  # a document begins in the segment's row: what came before it is behind nothing
    current: Bool[Array, " S"] | None  # what the segment holds at its end is of its row's last document
    axis: str = dataclasses.field(metadata={"static": True})  # of the mesh

    def left(self, x: Any, fill: int = 0) -> Any:
        """What segments leave behind, arrays [S, ...]: ``fill`` where it is of a document that has ended."""
        current = self.current
        return x if current is None else jax.tree.map(lambda a: _where(current, a, fill), x)

    def passed(self, x: Any, fill: int = 0) -> Any:
        """What is passed on of the pieces before, arrays [S, ...]: ``fill`` where a document begins."""
        begun = self.begun
        return x if begun is None else jax.tree.map(lambda a: _where(begun, fill, a), x)


def _where(condition: Bool[Array, " S"], a: Any, b: Any) -> Array:
    ndim = max(jnp.ndim(a), jnp.ndim(b))
    return jnp.where(condition.reshape(-1, *[1] * (ndim - 1)), a, b)


def from_before(x: Any, axis: str, distance: int = 1) -> Any:
    """Arrays of the device ``distance`` pieces before; zeros where there is none."""
    pieces = jax.lax.axis_size(axis)
    round_the_ring = [(i, (i + distance) % pieces) for i in range(pieces)]  # `jax.vmap` knows whole permutations alone
    known = jax.lax.axis_index(axis) >= distance
    return jax.tree.map(lambda a: jnp.where(known, jax.lax.ppermute(a, axis, round_the_ring), 0), x)


def all_before(combine: Callable[[Map, Map], Map], own: Map, axis: str) -> Map:
    """What all pieces before this one make together; zeros on the first.

    Args:
        combine: ``(earlier, later) -> both``, of neighbours; associative, and zeros before a map leave it as it acts
            on nothing.
        own: of this piece.
        axis: of the mesh.
    """
    own, distance = from_before(own, axis), 1
    while distance < jax.lax.axis_size(axis) - 1:
        own = combine(from_before(own, axis, distance), own)
        distance *= 2
    return own


def documents_of_piece(documents: DocumentRuns | None, axis: str | None) -> DocumentRuns | None:
    """Documents counted from the last token of the piece before, as those of a call are from the call before."""
    if documents is None or axis is None:
        return documents
    return dataclasses.replace(documents, index=documents.index - from_before(documents.index[:, -1:], axis))


def count_before(count: Int[Array, "*shape"], axis: str) -> Int[Array, "*shape"]:
    """The sum of the counts of all pieces before."""
    return all_before(jnp.add, count, axis)
