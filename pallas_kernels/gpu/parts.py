"""What several Triton kernels compute inside a chunk: decays between rows, and the inverse of a triangle."""

import triton
import triton.language as tl


@triton.jit
def decays_between(g, document, DOCUMENTS: tl.constexpr, C: tl.constexpr):
    """``exp(sum of g_j over i < j <= t)`` for rows i <= t of one document, else 0: float32 [C, C], row t, column i.

    ``g`` is float32 [C], ``document`` int32 [C], read if ``DOCUMENTS``. Each sum runs over just the gates between
    two rows, so that a very strong gate costs the others no digits.
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    passed = tl.cumsum(tl.where(row > column, g[:, None], 0.0), axis=0)
    seen = row >= column
    if DOCUMENTS:
        seen = seen & (document[:, None] == document[None, :])
    return tl.exp(tl.where(seen, passed, float("-inf")))


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
    return inverse


@triton.jit
def _invert_blocks(strict, C: tl.constexpr):
    """The inverses of the diagonal blocks of 16, at their places in [C, C]; 0 elsewhere."""
    BLOCKS: tl.constexpr = C // 16
    block = tl.arange(0, BLOCKS)
    diagonal = block[:, None, None, None] == block[None, None, :, None]
    tiles = tl.reshape(strict, (BLOCKS, 16, BLOCKS, 16))
    weights = tl.sum(tl.where(diagonal, tiles, 0.0), axis=2)

    row = tl.arange(0, 16)[None, :, None]
    inverse = tl.where(row == tl.arange(0, 16)[None, None, :], 1.0, 0.0) + tl.zeros_like(weights)
    for i in range(1, 16):  # row i of the inverse is e_i - weights[i] @ inverse, which needs the rows above alone
        weight = tl.sum(tl.where(row == i, weights, 0.0), axis=1)
        inverse -= tl.where(row == i, tl.sum(weight[:, :, None] * inverse, axis=1)[:, None, :], 0.0)
    return tl.reshape(tl.where(diagonal, inverse[:, :, None, :], 0.0), (C, C))


@triton.jit
def _merge(inverse, strict, SIZE: tl.constexpr, PRECISION: tl.constexpr, C: tl.constexpr):
    """Joins neighbouring blocks: ``[[U, 0], [L, W]]^-1`` is ``[[U', 0], [-W' L U', W']]`` with the inverses U', W'."""
    row = tl.arange(0, C)[:, None] // SIZE
    column = tl.arange(0, C)[None, :] // SIZE
    below = tl.where((row == column + 1) & (row % 2 == 1), strict, 0.0)
    right = tl.dot(below, inverse, input_precision=PRECISION)
    return inverse - tl.dot(inverse, right, input_precision=PRECISION)
