"""What happens inside one chunk, as values in VMEM that can be differentiated.

The backward kernel of a recurrence is the gradient of its forward kernel, so everything here has
a gradient that Mosaic lowers. Values of a chunk are float32 [MB, C, K] for a block of MB heads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu import parts

_AXES = {"nn": (-1, -2), "nt": (-1, -1), "tn": (-2, -2)}  # summed over, of a and of b


def _product(a: jax.Array, b: jax.Array, form: str, dtype: Any) -> jax.Array:
    """``a b`` (form nn), ``a b^T`` (nt) or ``a^T b`` (tn) of float32 matrices, in float32.

    The matrix unit gets operands of ``dtype``, in the gradients too; float32 ones at full precision.
    """
    a_by, b_by = _AXES[form]
    return parts.product(a.astype(dtype), b.astype(dtype), a_by=a_by, b_by=b_by)


product = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _product_fwd(a, b, form, dtype):
    return product(a, b, form, dtype), (a, b)


def _product_bwd(form, dtype, operands, d):
    a, b = operands
    if form == "nn":
        return product(d, b, "nt", dtype), product(a, d, "tn", dtype)
    if form == "nt":
        return product(d, b, "nn", dtype), product(d, a, "tn", dtype)
    return product(b, d, "nt", dtype), product(a, d, "nn", dtype)


product.defvjp(_product_fwd, _product_bwd)


@jax.custom_vjp
def head_decays(gates: jax.Array, inside: parts.Documents) -> parts.Decays:
    """`parts.head_decays` with its gradient: sums of the gradients of all paths over a gate."""
    return parts.head_decays(gates, inside)


def _head_decays_fwd(gates, inside):
    decays = parts.head_decays(gates, inside)
    return decays, decays


def _head_decays_bwd(decays, d):
    return parts.head_gate_gradients(*(x * dx for x, dx in zip(decays, d, strict=True))), None


head_decays.defvjp(_head_decays_fwd, _head_decays_bwd)


def no_decays(size: int, inside: parts.Documents) -> tuple[jax.Array, Any, Any, Any]:
    """`parts.Decays` without gates: a mask between rows, and masks or None where nothing is hidden."""
    shape = (1, size, size)
    between = parts.row_index(shape) >= parts.column_index(shape)
    between = between if inside.between is None else between & inside.between
    enter, leave, across = (None if keep is None else jnp.where(keep, 1.0, 0.0) for keep in inside[1:])
    return jnp.where(between, 1.0, 0.0), enter, leave, across


def times(x: jax.Array, decay: jax.Array | None) -> jax.Array:
    """``x`` times a decay, of which None stands for 1."""
    return x if decay is None else x * decay


class ChannelDecays(NamedTuple):
    """Decays from one log gate for each row and channel."""

    cuts: tuple[jax.Array, ...]  # [MB, C, K] for halves of 2, 4 .. C / 2 rows: between a row and the cut
    enter: jax.Array  # [MB, C, K]: from the chunk's start to just before a row
    leave: jax.Array  # [MB, C, K]: from just after a row to the chunk's end
    across: jax.Array  # [MB, K, 1]


def channel_decays(g: jax.Array, inside: parts.Documents) -> ChannelDecays:
    """Decays of a chunk with log gates [MB, C, K], without forming them for all pairs of rows.

    A chunk is halved again and again. A pair of rows i < t is parted by exactly one of these cuts:
    i lies in the half before it, t in the half behind. Both factors of its decay, from just after i
    to the cut and from the cut to just before t, are at most 1 for gates of any strength. A cut
    between neighbours has no gates on either side.
    """
    row = parts.row_index(g.shape)
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
        enter=parts.masked(jnp.exp(before), inside.enter),
        leave=parts.masked(jnp.exp(behind), inside.leave),
        across=parts.masked(parts.to_column(jnp.exp(whole[:, :1])), inside.across),
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


def cut_masks(size: int, inside: parts.Documents, copies: int = 1) -> list[jax.Array]:
    """bool [1, copies * C, C]: the pairs of rows of one document that each cut parts, halves of 1, 2, 4 .. rows."""
    shape = (1, copies * size, size)
    t, i = parts.row_index(shape) & (size - 1), parts.column_index(shape)
    below = t > i
    if inside.between is not None:
        between = jnp.where(inside.between, 1.0, 0.0)  # Mosaic joins no masks
        below &= jnp.concatenate([between] * copies, 1) > 0
    return [below & ((t ^ i) >= rows) & ((t ^ i) < 2 * rows) for rows in (1 << n for n in range(size.bit_length() - 1))]


def decayed_scores(
    left: jax.Array, right: jax.Array, decays: ChannelDecays, masks: list[jax.Array], dtype: Any
) -> jax.Array:
    """``sum_c left_tc right_ic exp(sum of g_jc over i < j < t)`` for i < t of one document, else 0; [MB, C, C].

    Rows of several kinds, one kind under the other, give [MB, copies * C, C] with the masks of as many copies.
    """
    copies = left.shape[1] // right.shape[1]
    scores = parts.masked(product(left, right, "nt", dtype), masks[0])
    for decay, parted in zip(decays.cuts, masks[1:], strict=True):
        reads = left * (decay if copies == 1 else jnp.concatenate([decay] * copies, 1))
        scores += parts.masked(product(reads, right * decay, "nt", dtype), parted)
    return scores


def diagonal(x: jax.Array) -> jax.Array:
    """The square matrix [MB, C, C] with the column [MB, C, 1] on its diagonal."""
    square = (x.shape[0], x.shape[1], x.shape[1])
    return jnp.where(parts.row_index(square) == parts.column_index(square), x, 0.0)
