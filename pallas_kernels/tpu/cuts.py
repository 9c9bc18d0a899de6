"""Decays within a chunk from one log gate for each key channel, inside a TPU kernel.

A chunk is halved recursively. Exactly one of these cuts separates a pair of rows i < t: i lies in the half before
it, t in the half after it. Both factors of its decay, from just after i to the cut and from the cut to just
before t, are at most 1 for gates of any strength.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu.decays import Documents, masked
from pallas_kernels.tpu.products import column_index, rounded_product, row_index, to_column


class ChannelDecays(NamedTuple):
    """Decays from one log gate for each row and channel."""

    cuts: tuple[jax.Array, ...]  # [MB, C, K] for halves of 2, 4 .. C / 2 rows: between a row and the cut
    enter: jax.Array  # [MB, C, K]: from the chunk's start to just before a row
    leave: jax.Array  # [MB, C, K]: from just after a row to the chunk's end
    across: jax.Array  # [MB, K, 1]


def channel_decays(g: jax.Array, inside: Documents) -> ChannelDecays:
    """Decays of a chunk with log gates [MB, C, K], without forming them for all pairs of rows.

    A cut between neighbours has no gates on either side.
    """
    row = row_index(g.shape)
    before = behind = jnp.zeros_like(g)  # sums within the row's half
    whole, cuts, rows = g, [], 1
    while rows < g.shape[-2]:
        second = (row & rows) != 0
        if rows > 1:
            cuts.append(jnp.exp(jnp.where(second, before, behind)))
        other = jnp.where(second, rotate(whole, rows), rotate(whole, g.shape[-2] - rows))
        before += jnp.where(second, other, 0.0)
        behind += jnp.where(second, 0.0, other)
        whole += other
        rows *= 2
    return ChannelDecays(
        cuts=tuple(cuts),
        enter=masked(jnp.exp(before), inside.enter),
        leave=masked(jnp.exp(behind), inside.leave),
        across=masked(to_column(jnp.exp(whole[:, :1])), inside.across),
    )


def _rotate(x: jax.Array, rows: int) -> jax.Array:
    """Row t of [MB, C, K] becomes row t + rows, the last ones the first."""
    return pltpu.roll(x, rows, 1)


rotate = jax.custom_vjp(_rotate, nondiff_argnums=(1,))


def _rotate_fwd(x, rows):
    return rotate(x, rows), None


def _rotate_bwd(rows, _, d):
    return (rotate(d, d.shape[1] - rows),)


rotate.defvjp(_rotate_fwd, _rotate_bwd)


def cut_masks(size: int, inside: Documents, copies: int = 1) -> list[jax.Array]:
    """bool [1, copies * C, C]: pairs of rows of one document that each cut separates, for halves of 1, 2, 4 .. rows."""
    shape = (1, copies * size, size)
    t, i = row_index(shape) & (size - 1), column_index(shape)
    below = t > i
    if inside.between is not None:
        between = jnp.where(inside.between, 1.0, 0.0)  # Mosaic cannot concatenate masks
        below &= jnp.concatenate([between] * copies, 1) > 0
    return [below & ((t ^ i) >= rows) & ((t ^ i) < 2 * rows) for rows in (1 << n for n in range(size.bit_length() - 1))]


def decayed_scores(
    left: jax.Array, right: jax.Array, decays: ChannelDecays, masks: list[jax.Array], dtype: Any
) -> jax.Array:
    """``sum_c left_tc right_ic exp(sum of g_jc over i < j < t)`` for i < t of one document, else 0; [MB, C, C].

    Several kinds of rows, stacked, give [MB, copies * C, C], with masks for as many copies.
    """
    copies = left.shape[1] // right.shape[1]
    scores = masked(rounded_product(left, right, "nt", dtype), masks[0])
    for decay, parted in zip(decays.cuts, masks[1:], strict=True):
        reads = left * (decay if copies == 1 else jnp.concatenate([decay] * copies, 1))
        scores += masked(rounded_product(reads, right * decay, "nt", dtype), parted)
    return scores
