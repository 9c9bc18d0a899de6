"""The Triton kernels of `grouped_matmul`, which has the equations and calls them.

Three weights have the places 0, 1 and 2; one that is not there has no columns.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def load_sizes(p_sizes, GROUPS: tl.constexpr, SLOTS: tl.constexpr):
    """Rows of each group [SLOTS], 0 behind the last one; and the groups' numbers."""
    place = tl.arange(0, SLOTS)
    return tl.load(p_sizes + place, mask=place < GROUPS, other=0), place


@triton.jit
def group_of(number, p_sizes, rows, GROUPS: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr):
    """Group, first row and end of the group's rows of a tile of BM rows that crosses no group's border.

    Rows behind the last group are group GROUPS; of a tile that is not used, the group is larger.
    """
    sizes, place = load_sizes(p_sizes, GROUPS, SLOTS)
    sizes = tl.where(place == GROUPS, rows - tl.sum(sizes, axis=0), sizes)
    tiles = (sizes + BM - 1) // BM
    group = tl.sum((tl.cumsum(tiles, axis=0) <= number).to(tl.int32), axis=0)
    begin = tl.sum(tl.where(place < group, sizes, 0), axis=0)
    row = begin + (number - tl.sum(tl.where(place < group, tiles, 0), axis=0)) * BM
    end = begin + tl.sum(tl.where(place == group, sizes, 0), axis=0)
    return group.to(tl.int64), row.to(tl.int64), end


@triton.jit
def source_of(p_token, row, inside, TOKENS: tl.constexpr):
    """Where rows lie in x, and which are there: the rows themselves, or the tokens that they are copies of."""
    place = row
    if TOKENS > 0:
        place = tl.load(p_token + row, mask=inside, other=TOKENS).to(tl.int64)
        inside = place < TOKENS
    return place, inside


@triton.jit
def multiply(
    p_x, p_weight, total, place, inside, g, column, columns,
    K: tl.constexpr, TRANSPOSED: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``total + x @ weight[g]`` for rows of x [.., K] and BN of the columns of weights [K, columns].

    ``TRANSPOSED`` weights are [columns, K].
    """
    n = column + tl.arange(0, BN)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        p_block = p_x + place[:, None] * K + k[None, :]
        b_x = tl.load(p_block, mask=inside[:, None] & (k < K)[None, :], other=0.0)
        if TRANSPOSED:
            p_block, kept = p_weight + (g * columns + n)[:, None] * K + k[None, :], (n < columns)[:, None]
            b_weight = tl.trans(tl.load(p_block, mask=kept & (k < K)[None, :], other=0.0))
        else:
            p_block, kept = p_weight + (g * K + k)[:, None] * columns + n[None, :], (n < columns)[None, :]
            b_weight = tl.load(p_block, mask=kept & (k < K)[:, None], other=0.0)
        total = tl.dot(b_x, b_weight, total, input_precision=PRECISION)
    return total


@triton.jit
def store_tile(p_y, total, row, inside, column, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Writes a block [BM, BN] of y [.., columns]."""
    n = column + tl.arange(0, BN)
    p_block = p_y + (row + tl.arange(0, BM))[:, None] * columns + n[None, :]
    tl.store(p_block, total.to(p_y.dtype.element_ty), mask=inside[:, None] & (n < columns)[None, :])


@triton.jit
def product(
    p_x, p_token, p_weight, p_y, g, row, end, column, columns,
    GROUPS: tl.constexpr, TOKENS: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x @ weight[g]`` for BM rows and BN columns; 0 behind the last group."""
    rows = row + tl.arange(0, BM)
    place, inside = source_of(p_token, rows, rows < end, TOKENS)
    total = tl.zeros((BM, BN), tl.float32)
    if g < GROUPS:
        total = multiply(p_x, p_weight, total, place, inside, g, column, columns, K, False, BN, BK, PRECISION)
    store_tile(p_y, total, row, rows < end, column, columns, BM, BN)


@triton.jit
def product_kernel(
    p_x, p_token, p_w0, p_w1, p_w2, p_sizes, p_y0, p_y1, p_y2, rows,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr, K: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BN: tl.constexpr, BN2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x @ w[g]`` for one tile of rows and one block of the columns of one of the weights [GROUPS, K, N].

    The first two share their program, and so its buffers in shared memory; the third, of few columns, has its own.
    """
    B0: tl.constexpr = (N0 + BN - 1) // BN
    B1: tl.constexpr = (N1 + BN - 1) // BN
    B2: tl.constexpr = (N2 + BN2 - 1) // BN2
    block = tl.program_id(0) % (B0 + B1 + B2)
    g, row, end = group_of(tl.program_id(0) // (B0 + B1 + B2), p_sizes, rows, GROUPS, SLOTS, BM)
    if g > GROUPS:
        return
    if block < B0 + B1:
        second = block >= B0
        columns = tl.where(second, N1, N0)
        if N0 % 16 == 0 and N1 % 16 == 0:
            columns = tl.multiple_of(columns, 16)
        if second:
            p_w0 = p_w1
            p_y0 = p_y1
        column = tl.where(second, block - B0, block) * BN
        product(p_x, p_token, p_w0, p_y0, g, row, end, column, columns,
                GROUPS, TOKENS, K, BM, BN, BK, PRECISION)  # fmt: skip
    elif N2 > 0:
        product(p_x, p_token, p_w2, p_y2, g, row, end, (block - B0 - B1) * BN2, N2,
                GROUPS, TOKENS, K, BM, BN2, BK, PRECISION)  # fmt: skip


@triton.jit
def row_gradient_kernel(
    p_dy0, p_dy1, p_dy2, p_w0, p_w1, p_w2, p_sizes, p_dx, rows,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, K: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, BN2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dx`` [.., K], the sum of ``dy @ w[g]^T`` over all weights, for one tile of rows and one block of columns."""
    blocks = tl.cdiv(K, BK)
    column = (tl.program_id(0) % blocks) * BK
    g, first, end = group_of(tl.program_id(0) // blocks, p_sizes, rows, GROUPS, SLOTS, BM)
    if g > GROUPS:
        return
    row = first + tl.arange(0, BM)
    inside = row < end
    total = tl.zeros((BM, BK), tl.float32)
    if g < GROUPS:
        if N0 > 0:
            total = multiply(p_dy0, p_w0, total, row, inside, g, column, K, N0, True, BK, BN, PRECISION)
        if N1 > 0:
            total = multiply(p_dy1, p_w1, total, row, inside, g, column, K, N1, True, BK, BN, PRECISION)
        if N2 > 0:
            total = multiply(p_dy2, p_w2, total, row, inside, g, column, K, N2, True, BK, BN2, PRECISION)
    store_tile(p_dx, total, first, inside, column, K, BM, BK)


@triton.jit
def outer(
    p_x, p_token, p_dy, p_dweight, p_sizes, g, block, columns,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr, M: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dweight[g] = x_g^T @ dy_g``, [M, columns], one block of it."""
    row = (block // tl.cdiv(columns, BN)) * BM
    column = (block % tl.cdiv(columns, BN)) * BN
    sizes, slot = load_sizes(p_sizes, GROUPS, SLOTS)
    begin = tl.sum(tl.where(slot < g, sizes, 0), axis=0)
    end = begin + tl.sum(tl.where(slot == g, sizes, 0), axis=0)
    m = row + tl.arange(0, BM)
    n = column + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(begin.to(tl.int64), end, BK):
        row_x = k + tl.arange(0, BK)
        place, inside = source_of(p_token, row_x, row_x < end, TOKENS)
        p_block = p_x + place[:, None] * M + m[None, :]
        b_x = tl.load(p_block, mask=inside[:, None] & (m < M)[None, :], other=0.0)
        p_block = p_dy + row_x[:, None] * columns + n[None, :]
        b_dy = tl.load(p_block, mask=(row_x < end)[:, None] & (n < columns)[None, :], other=0.0)
        total = tl.dot(tl.trans(b_x), b_dy, total, input_precision=PRECISION)
    store_tile(p_dweight, total, g * M + row, m < M, column, columns, BM, BN)


@triton.jit
def weight_gradient_kernel(
    p_x, p_token, p_dy0, p_dy1, p_dy2, p_sizes, p_dw0, p_dw1, p_dw2,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr, M: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BN: tl.constexpr, BN2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights: one block of one of them for one group; grid (blocks, GROUPS). As `product_kernel`."""
    ROWS: tl.constexpr = (M + BM - 1) // BM
    B0: tl.constexpr = ROWS * ((N0 + BN - 1) // BN)
    B1: tl.constexpr = ROWS * ((N1 + BN - 1) // BN)
    block = tl.program_id(0)
    g = tl.program_id(1).to(tl.int64)
    if block < B0 + B1:
        second = block >= B0
        columns = tl.where(second, N1, N0)
        if N0 % 16 == 0 and N1 % 16 == 0:
            columns = tl.multiple_of(columns, 16)
        if second:
            p_dy0 = p_dy1
            p_dw0 = p_dw1
        outer(p_x, p_token, p_dy0, p_dw0, p_sizes, g, tl.where(second, block - B0, block), columns,
              GROUPS, SLOTS, TOKENS, M, BM, BN, BK, PRECISION)  # fmt: skip
    elif N2 > 0:
        outer(p_x, p_token, p_dy2, p_dw2, p_sizes, g, block - B0 - B1, N2,
              GROUPS, SLOTS, TOKENS, M, BM, BN2, BK, PRECISION)  # fmt: skip
