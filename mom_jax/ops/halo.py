"""The inputs that short convolutions of a piece read of the pieces before it (`mom_jax.ops.pieces`)."""

from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.pieces import all_before
from mom_jax.ops.segments import Packing
from mom_jax.ops.short_conv import conv_state
from mom_jax.typing import Array, Float, Int


class _Last(NamedTuple):
    """The last inputs of each segment, 0 before the first; a map that appends them to what came before."""

    inputs: Float[Array, "S history D"]  # oldest first
    count: Int[Array, " S"]  # how many there are; all of them where a document begins


def inputs_before(
    x: Float[Array, "N D"] | Float[Array, "B T D"], packing: Packing, history: int
) -> Float[Array, "S {history} D"]:
    """The ``history`` inputs before each segment, oldest first, of its document: of any piece that holds some.

    Args:
        x: rows or tokens of this piece, as in `mom_jax.ops.short_conv.short_conv`.
        packing: of the rows, with a piece.
        history: taps but the row's own, W-1.
    """
    piece = packing.piece
    assert piece is not None
    empty = jnp.zeros((packing.length.shape[0], history, x.shape[-1]), x.dtype)
    inputs = piece.left(conv_state(x, packing, empty))
    count = piece.passed(jnp.minimum(packing.length, history), history)
    return all_before(_appended, _Last(inputs, count), piece.axis).inputs


def _appended(earlier: _Last, later: _Last) -> _Last:
    history = earlier.inputs.shape[1]
    inputs = later.inputs
    for count in range(history):  # of few, by comparing: no gather
        moved = jnp.pad(earlier.inputs[:, count:], ((0, 0), (0, count), (0, 0)))
        inputs = inputs + jnp.where((later.count == count)[:, None, None], moved, 0)
    return _Last(inputs, jnp.minimum(earlier.count + later.count, history))
