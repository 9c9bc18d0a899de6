"""Inverse of unit lower triangular matrices inside a TPU kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu.products import column_index, product, row_index, split_product

_BLOCK = 16


def unit_lower_inverse(strict: jax.Array, exact: bool) -> jax.Array:
    """``(I + strict)^-1`` of strictly lower triangular float32 [MB, C, C], C a power of two from 16.

    Blocks of 16 are inverted by exact forward substitution, all at once, then merged pairwise until
    one is left. A doubling series over more than a few rows overflows when keys are correlated.
    Merges multiply exactly to float32, or to 16 bits where not ``exact``.
    """
    multiply = product if exact else functools.partial(split_product, count=2)
    size, block = strict.shape[-1], _BLOCK
    strips = _unpack(_substitute(_pack(strict)))
    while block < size:
        strips, block = _merge(strict, strips, block, multiply), 2 * block
    return strips[0]


def _merge(strict, strips, block, multiply):
    """Pairs of strips [MB, block, C] become one: the corner between them is ``-lower @ (corner @ upper)``."""
    upper, lower = strips[0::2], strips[1::2]
    columns = column_index((1, block, strict.shape[-1])) // block
    corners = [
        jnp.where(columns == 2 * p, strict[:, (2 * p + 1) * block : (2 * p + 2) * block], 0.0)
        for p in range(len(lower))
    ]
    right = multiply(_rows(corners), _rows(strips))
    zeros = jnp.zeros_like(lower[0])
    right = _rows([x for p in range(len(lower)) for x in (zeros, right[:, p * block : (p + 1) * block])])
    corner = multiply(_rows(lower), right)
    return [
        _rows([above, below - corner[:, p * block : (p + 1) * block]])
        for p, (above, below) in enumerate(zip(upper, lower, strict=True))
    ]


def _rows(strips):
    return strips[0] if len(strips) == 1 else jnp.concatenate(strips, 1)


def _pack(strict):
    """The diagonal blocks side by side, [MB, 16, C]."""
    block = column_index((1, _BLOCK, strict.shape[-1])) // _BLOCK
    rows = (strict[:, b * _BLOCK : (b + 1) * _BLOCK] for b in range(strict.shape[-1] // _BLOCK))
    return sum(jnp.where(block == b, x, 0.0) for b, x in enumerate(rows))


def _unpack(packed):
    """The inverse of `_pack`, as strips of 16 rows."""
    block = column_index((1, _BLOCK, packed.shape[-1])) // _BLOCK
    return [jnp.where(block == b, packed, 0.0) for b in range(packed.shape[-1] // _BLOCK)]


def _substitute(strict):
    """Column j of each block, times row j of its inverse, leaves the rows below once row j is final."""
    row, place = row_index(strict.shape), column_index(strict.shape) % _BLOCK
    inverse = jnp.where(row == place, 1.0, 0.0)
    for j, column in enumerate(_spread(strict, place, _BLOCK // 2)[:-1]):
        inverse -= column * inverse[:, j : j + 1]
    return inverse


def _spread(x, place, half):
    """For each column of the blocks, an array that holds it in all 16 columns: halves are copied over halves."""
    if half == 0:
        return [x]
    size = x.shape[-1]
    low = jnp.where((place & half) != 0, pltpu.roll(x, half, 2), x)
    high = jnp.where((place & half) != 0, x, pltpu.roll(x, size - half, 2))
    return _spread(low, place, half // 2) + _spread(high, place, half // 2)
