"""Inverse of a unit lower triangular matrix inside a Triton kernel."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def unit_lower_inverse(strict, PRECISION: tl.constexpr, C: tl.constexpr):
    """``(I + strict)^-1`` of a strictly lower triangle, float32 [C, C], C one of 16, 32 and 64.

    Exact substitution on the blocks of 16 along the diagonal, then pairs of blocks are merged. The doubling series
    over the whole triangle overflows when keys are correlated.
    """
    inverse = _invert_blocks(strict, C)
    if C >= 32:
        inverse = _merge(inverse, strict, 16, PRECISION, C)
    if C >= 64:
        inverse = _merge(inverse, strict, 32, PRECISION, C)
    return tl.reshape(inverse, (C, C))


@triton.jit
def _invert_blocks(strict, C: tl.constexpr):
    """The inverses of the diagonal blocks, [C // 16, 16, 16]."""
    BLOCKS: tl.constexpr = C // 16
    block = tl.arange(0, BLOCKS)
    diagonal = block[:, None, None, None] == block[None, None, :, None]
    weights = tl.sum(tl.where(diagonal, tl.reshape(strict, (BLOCKS, 16, BLOCKS, 16)), 0.0), axis=2)

    row = tl.arange(0, 16)[None, :, None]
    inverse = tl.where(row == tl.arange(0, 16)[None, None, :], 1.0, 0.0) + tl.zeros_like(weights)
    for i in range(1, 16):  # row i of the inverse is e_i - weights[i] @ inverse, which needs the rows above alone
        weight = tl.sum(tl.where(row == i, weights, 0.0), axis=1)
        inverse -= tl.where(row == i, tl.sum(weight[:, :, None] * inverse, axis=1)[:, None, :], 0.0)
    return inverse


@triton.jit
def _merge(inverse, strict, SIZE: tl.constexpr, PRECISION: tl.constexpr, C: tl.constexpr):
    """Joins neighbouring blocks of [C // SIZE, SIZE, SIZE]: ``[[U, 0], [L, W]]^-1 = [[1/U, 0], [-1/W L 1/U, 1/W]]``."""
    BLOCKS: tl.constexpr = C // SIZE
    PAIRS: tl.constexpr = BLOCKS // 2
    block = tl.arange(0, BLOCKS)
    row = block[:, None, None, None]
    below = (row == block[None, None, :, None] + 1) & (row % 2 == 1)
    below = tl.sum(tl.where(below, tl.reshape(strict, (BLOCKS, SIZE, BLOCKS, SIZE)), 0.0), axis=2)
    below = tl.sum(tl.reshape(below, (PAIRS, 2, SIZE, SIZE)), axis=1)

    half = tl.arange(0, 2)
    inverse = tl.reshape(inverse, (PAIRS, 2, SIZE, SIZE))
    upper = tl.sum(tl.where(half[None, :, None, None] == 0, inverse, 0.0), axis=1)
    lower = tl.sum(tl.where(half[None, :, None, None] == 1, inverse, 0.0), axis=1)
    if PAIRS == 1:
        upper = tl.reshape(upper, (SIZE, SIZE))
        lower = tl.reshape(lower, (SIZE, SIZE))
        below = tl.reshape(below, (SIZE, SIZE))
    corner = tl.dot(lower, tl.dot(below, upper, input_precision=PRECISION), input_precision=PRECISION)

    first = half[None, :, None, None, None]
    second = half[None, None, None, :, None]
    corner = tl.where(first > second, -tl.reshape(corner, (PAIRS, 1, SIZE, 1, SIZE)), 0.0)
    joined = tl.where(first == second, tl.reshape(inverse, (PAIRS, 2, SIZE, 1, SIZE)), corner)
    return tl.reshape(joined, (PAIRS, 2 * SIZE, 2 * SIZE))
