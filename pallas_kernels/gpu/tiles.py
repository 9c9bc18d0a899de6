"""Where blocks of rows, gates and states lie in memory, for the Triton kernels.

In every kernel ``p_x`` is a pointer to an array and ``b_x`` a block that was loaded from it. Constants are capitals:
HEADS heads, C rows of a chunk, K key and V value channels, BK and BV of a block. Rows lie as [N, HEADS, K], gates as
[N, HEADS], states as [.., HEADS, K, V]. What is one for each chunk and head has HEADS = 1 and numbers both together.

Loops with ``disable_licm`` make addresses, masks and tf32 parts of operands anew each time: kept from one pass to the
next, as compilers like it, they would fill the registers.
"""

# Triton's annotations do not describe what its compiler accepts for constexpr.
# pyright: reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def tile(p_x, row, head, column, HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to ``x[row : row + ROWS, head, column : column + COLUMNS]`` of [.., HEADS, WIDTH]."""
    inside = tl.arange(0, ROWS)[:, None] * (HEADS * WIDTH) + tl.arange(0, COLUMNS)[None, :]
    return p_x + (row * HEADS + head) * WIDTH + column + inside


@triton.jit
def per_row(p_x, row, head, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Pointers to ``x[row : row + ROWS, head]`` of [N, HEADS]."""
    return p_x + row * HEADS + head + tl.arange(0, ROWS) * HEADS


@triton.jit
def square(p_x, at, C: tl.constexpr):
    """Pointers to ``x[at]`` of [.., C, C]."""
    return tile(p_x, at * C, 0, 0, 1, C, C, C)


@triton.jit
def load_run(p_runs, run):
    """Segment, first chunk (int64) and number of chunks of a run (`pallas_kernels.chunks.Chunks.runs`)."""
    return tl.load(p_runs + 3 * run), tl.load(p_runs + 3 * run + 1).to(tl.int64), tl.load(p_runs + 3 * run + 2)


@triton.jit
def place_of(number, HEADS: tl.constexpr, C: tl.constexpr):
    """First row and head of the chunk and head with a number, and the number as int64, to be multiplied by widths."""
    return (number // HEADS).to(tl.int64) * C, number % HEADS, number.to(tl.int64)
