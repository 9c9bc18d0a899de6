"""Which gates lie between a row and a cut that halves its chunk, inside a Triton kernel; `vector_decay` says why."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def between(first, end, C: tl.constexpr):
    """Numbers from ``first`` to before ``end``, both [C], in 0 to C - 1: [C, C].

    Every mask is made of bounds for its rows: comparisons of row and column would be kept in registers.
    """
    column = tl.arange(0, C)[None, :]
    return (column >= first[:, None]) & (column < end[:, None])


@triton.jit
def to_cut(cut, C: tl.constexpr):
    """Which gates lie between each row and its cut, in halves of ``2 ** cut`` rows: [C, C], row, gate.

    A path from the cut to a row of the second half ends before the row's gate; one from a row of the first half to
    the cut begins after the row's gate.
    """
    row = tl.arange(0, C)
    half = row >> cut
    second = (half & 1) == 1
    return between(tl.where(second, half << cut, row + 1), tl.where(second, row, (half + 1) << cut), C)


@triton.jit
def from_cut(cut, C: tl.constexpr):
    """The same transposed: [C, C], gate, row."""
    gate = tl.arange(0, C)
    half = gate >> cut
    second = (half & 1) == 1
    return between(tl.where(second, gate + 1, half << cut), tl.where(second, (half + 1) << cut, gate), C)


@triton.jit
def parted(cut, C: tl.constexpr):
    """Pairs of a later and an earlier row that the cuts between halves of ``2 ** cut`` rows separate: [C, C]."""
    half = tl.arange(0, C) >> cut
    return between((half - 1) << cut, (half & -(half & 1)) << cut, C)


@triton.jit
def masked_sums(mask, x, PRECISION: tl.constexpr):
    """Sums over the rows of float32 ``x`` [C, BK] that ``mask`` [C, C] names, by matrix products.

    Without products of float32, three of bfloat16 parts give all 24 bits; ``mask`` is exact in any dtype. Of several
    blocks x [B, C, BK] at once, all with one mask.
    """
    ones = tl.where(mask, 1.0, 0.0)
    if len(x.shape) == 3:
        ones = tl.broadcast_to(ones[None, :, :], (x.shape[0], ones.shape[0], ones.shape[1]))
    if PRECISION == "ieee":
        return tl.dot(ones, x, input_precision="ieee")
    ones = ones.to(tl.bfloat16)
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(ones, high, tl.dot(ones, middle, tl.dot(ones, low)))


@triton.jit
def border_decays(b_g, b_document, cuts, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr, C: tl.constexpr):
    """Decays from the chunk's start to just before each row, from after it to the end, [C, BK], and across [BK]."""
    enter = tl.exp(masked_sums(from_cut(cuts, C), b_g, PRECISION))  # the whole chunk is a first half
    leave = tl.exp(masked_sums(to_cut(cuts, C), b_g, PRECISION))
    across = tl.exp(tl.sum(b_g, axis=0))
    if DOCUMENTS:
        last = tl.max(b_document, axis=0)
        enter = tl.where((b_document == 0)[:, None], enter, 0.0)
        leave = tl.where((b_document == last)[:, None], leave, 0.0)
        across = tl.where(last == 0, across, 0.0)
    return enter, leave, across


@triton.jit
def in_blocks(x, ROWS: tl.constexpr, C: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [C, COLUMNS] as blocks [C // ROWS, ROWS, COLUMNS], for cuts within blocks: fewer products than of C rows."""
    return tl.reshape(x, (C // ROWS, ROWS, COLUMNS))


@triton.jit
def on_diagonal(blocks, C: tl.constexpr):
    """Blocks [C // 16, 16, 16] along the diagonal of [C, C]."""
    B: tl.constexpr = C // 16
    row = tl.arange(0, B)[:, None, None, None]
    column = tl.arange(0, B)[None, None, :, None]
    return tl.reshape(tl.where(row == column, tl.reshape(blocks, (B, 16, 1, 16)), 0.0), (C, C))


@triton.jit
def halves(x, HALF: tl.constexpr, C: tl.constexpr, COLUMNS: tl.constexpr):
    """First and second halves, [C // 2 HALF, HALF, COLUMNS], of each 2 HALF rows of [C, COLUMNS]."""
    pairs = tl.reshape(x, (C // (2 * HALF), 2, HALF, COLUMNS))
    return tl.split(tl.permute(pairs, (0, 2, 3, 1)))


@triton.jit
def to_middle(first, second, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """Decays between the rows of two halves and the cut between them, from the gates of both."""
    row = tl.arange(0, HALF)
    before = tl.exp(masked_sums(between(row + 1, row * 0 + HALF, HALF), first, PRECISION))
    return before, tl.exp(masked_sums(between(row * 0, row, HALF), second, PRECISION))


@triton.jit
def below_diagonal(blocks, HALF: tl.constexpr, C: tl.constexpr):
    """Blocks [C // 2 HALF, HALF, HALF] between the second and the first half of each 2 HALF rows, in [C, C]."""
    PAIRS: tl.constexpr = C // (2 * HALF)
    place = tl.arange(0, 2 * PAIRS)
    row = place[:, None, None, None]
    there = (row == place[None, None, :, None] + 1) & (row % 2 == 1)
    twice = tl.broadcast_to(tl.reshape(blocks, (PAIRS, 1, HALF, 1, HALF)), (PAIRS, 2, HALF, 1, HALF))
    return tl.reshape(tl.where(there, tl.reshape(twice, (2 * PAIRS, HALF, 1, HALF)), 0.0), (C, C))
