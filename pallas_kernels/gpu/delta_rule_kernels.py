"""The gated delta rule's Triton kernels but for the rows' gradients; `delta_rule` has the equations and calls them.

What is [C, C] for each chunk and head lies as rows of width C. Half-precision rows are multiplied in their own dtype
and summed in float32; ``PRECISION`` says how float32 rows are multiplied. Names and constants: `tiles`.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.decays import decays_between, load_documents
from pallas_kernels.gpu.states import load_rows, load_state, read, store_state, write
from pallas_kernels.gpu.tiles import load_run, per_row, tile
from pallas_kernels.gpu.triangular import unit_lower_inverse


@triton.jit
def pair_of(segment, chunk, n):
    """The number of a pair of chunks: the n-th chunk of a segment that begins at ``chunk``, and the one beside it.

    Pairs begin with their segment, whose last may be one chunk alone. No two have one number, all of which are less
    than half of chunks and segments together.
    """
    return (chunk + segment) // 2 + n // 2


@triton.jit
def prepare_kernel(
    p_q, p_k, p_g, p_beta, p_document, p_inverse, p_scores, p_enter, p_leave,
    SCALE: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The part of a chunk that does not depend on the state; grid (chunks, HEADS).

    Writes inverse and scores [N, HEADS, C], the decays from the chunk's start to a row and from a row to its end
    [N, HEADS].
    """
    row = tl.program_id(0).to(tl.int64) * C
    head = tl.program_id(1)
    gram = tl.zeros((C, C), tl.float32)
    products = tl.zeros((C, C), tl.float32)
    for column in range(0, K, BK):
        b_k = tl.load(tile(p_k, row, head, column, HEADS, K, C, BK))
        b_q = tl.load(tile(p_q, row, head, column, HEADS, K, C, BK))
        gram = tl.dot(b_k, tl.trans(b_k), gram, input_precision=PRECISION)
        products = tl.dot(b_q, tl.trans(b_k), products, input_precision=PRECISION)

    b_g = tl.load(per_row(p_g, row, head, HEADS, C))
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    between = decays_between(b_g, b_document, DOCUMENTS, C)
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))
    strict = tl.where(t > i, between * gram * b_beta[None, :], 0.0)

    enter = tl.exp(tl.where(b_document == 0, tl.cumsum(b_g, axis=0), float("-inf")))
    leave = tl.sum(tl.where(t == C - 1, between, 0.0), axis=0)
    dtype = p_k.dtype.element_ty
    tl.store(per_row(p_enter, row, head, HEADS, C), enter)
    tl.store(per_row(p_leave, row, head, HEADS, C), leave)
    tl.store(tile(p_scores, row, head, 0, HEADS, C, C, C), (SCALE * between * products).to(dtype))
    tl.store(tile(p_inverse, row, head, 0, HEADS, C, C, C), unit_lower_inverse(strict, PRECISION, C).to(dtype))


@triton.jit
def forward_kernel(
    p_q, p_k, p_v, p_beta, p_inverse, p_scores, p_enter, p_leave, p_runs, p_initial, p_o, p_final,
    STATE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs and final states; grid (V / BV, HEADS, runs), the last run being the unused chunks."""
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    segment, chunk, chunks = load_run(p_runs, tl.program_id(2))
    if tl.program_id(2) == tl.num_programs(2) - 1:
        for n in range(chunks):
            tl.store(tile(p_o, (chunk + n) * C, head, column, HEADS, V, C, BV), tl.zeros((C, BV), p_o.dtype.element_ty))
        return

    slot = segment.to(tl.int64) * HEADS + head
    state = load_state(p_initial, slot, column, STATE, K, V, BK, BV)
    for n in tl.range(chunks, disable_licm=p_k.dtype.element_ty == tl.float32):
        row = (chunk + n) * C
        b_k = load_rows(p_k, row, head, HEADS, C, BK, BLOCKS)
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        b_enter = tl.load(per_row(p_enter, row, head, HEADS, C))
        residual = b_v - b_enter[:, None] * read(b_k, state, PRECISION, BLOCKS)
        b_inverse = tl.load(tile(p_inverse, row, head, 0, HEADS, C, C, C))
        error = tl.dot(b_inverse, residual.to(b_inverse.dtype), input_precision=PRECISION)
        update = tl.load(per_row(p_beta, row, head, HEADS, C))[:, None] * error

        b_q = load_rows(p_q, row, head, HEADS, C, BK, BLOCKS)
        b_scores = tl.load(tile(p_scores, row, head, 0, HEADS, C, C, C))
        o = SCALE * b_enter[:, None] * read(b_q, state, PRECISION, BLOCKS)
        o = tl.dot(b_scores, update.to(b_scores.dtype), o, input_precision=PRECISION)
        tl.store(tile(p_o, row, head, column, HEADS, V, C, BV), o.to(p_o.dtype.element_ty))

        b_leave = tl.load(per_row(p_leave, row, head, HEADS, C))
        across = tl.load(p_enter + (row + C - 1) * HEADS + head)
        state = write(b_k, b_leave[:, None] * update, across, state, PRECISION, BLOCKS)
    if STATE:
        store_state(p_final, state, slot, column, K, V, BK, BV)


@triton.jit
def borders_kernel(
    p_k, p_v, p_beta, p_inverse, p_enter, p_leave, p_runs, p_initial, p_border, p_error, p_place,
    STATE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """States that enter the pairs of chunks (`pair_of`), errors [N, HEADS, V], and each chunk's number inside its run.

    No program for unused chunks.
    """
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    segment, chunk, chunks = load_run(p_runs, tl.program_id(2))
    slot = segment.to(tl.int64) * HEADS + head
    state = load_state(p_initial, slot, column, STATE, K, V, BK, BV)
    for n in tl.range(chunks, disable_licm=p_k.dtype.element_ty == tl.float32):
        row = (chunk + n) * C
        tl.store(p_place + chunk + n, n, mask=(column == 0) & (head == 0))
        pair = pair_of(segment, chunk, n) * HEADS + head
        store_state(p_border, state, pair, column, K, V, BK, BV, n % 2 == 0)
        b_k = load_rows(p_k, row, head, HEADS, C, BK, BLOCKS)
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        b_enter = tl.load(per_row(p_enter, row, head, HEADS, C))
        residual = b_v - b_enter[:, None] * read(b_k, state, PRECISION, BLOCKS)
        b_inverse = tl.load(tile(p_inverse, row, head, 0, HEADS, C, C, C))
        error = tl.dot(b_inverse, residual.to(b_inverse.dtype), input_precision=PRECISION)
        tl.store(tile(p_error, row, head, column, HEADS, V, C, BV), error.to(p_error.dtype.element_ty))

        b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))
        b_leave = tl.load(per_row(p_leave, row, head, HEADS, C))
        across = tl.load(p_enter + (row + C - 1) * HEADS + head)
        state = write(b_k, (b_leave * b_beta)[:, None] * error, across, state, PRECISION, BLOCKS)


@triton.jit
def reverse_kernel(
    p_q, p_k, p_beta, p_inverse, p_scores, p_enter, p_leave, p_runs, p_do, p_dfinal,
    p_dborder, p_dv, p_dinitial,
    STATE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of the states that leave the pairs of chunks, of values, and of initial states; as `borders_kernel`."""
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    segment, chunk, chunks = load_run(p_runs, tl.program_id(2))
    if tl.program_id(2) == tl.num_programs(2) - 1:
        for n in range(chunks):
            tl.store(
                tile(p_dv, (chunk + n) * C, head, column, HEADS, V, C, BV), tl.zeros((C, BV), p_dv.dtype.element_ty)
            )
        return

    slot = segment.to(tl.int64) * HEADS + head
    dstate = load_state(p_dfinal, slot, column, STATE, K, V, BK, BV)
    for passed in tl.range(chunks, disable_licm=p_k.dtype.element_ty == tl.float32):
        n = chunks - 1 - passed
        row = (chunk + n) * C
        pair = pair_of(segment, chunk, n) * HEADS + head
        store_state(p_dborder, dstate, pair, column, K, V, BK, BV, (n % 2 == 1) | (n == chunks - 1))
        b_k = load_rows(p_k, row, head, HEADS, C, BK, BLOCKS)
        b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
        b_scores = tl.load(tile(p_scores, row, head, 0, HEADS, C, C, C))
        b_leave = tl.load(per_row(p_leave, row, head, HEADS, C))
        dupdate = b_leave[:, None] * read(b_k, dstate, PRECISION, BLOCKS)
        dupdate = tl.dot(tl.trans(b_scores), b_do, dupdate, input_precision=PRECISION)
        b_inverse = tl.load(tile(p_inverse, row, head, 0, HEADS, C, C, C))
        derror = tl.load(per_row(p_beta, row, head, HEADS, C))[:, None] * dupdate
        dv = tl.dot(tl.trans(b_inverse), derror.to(b_inverse.dtype), input_precision=PRECISION)
        tl.store(tile(p_dv, row, head, column, HEADS, V, C, BV), dv.to(p_dv.dtype.element_ty))

        b_enter = tl.load(per_row(p_enter, row, head, HEADS, C))
        across = tl.load(p_enter + (row + C - 1) * HEADS + head)
        b_q = load_rows(p_q, row, head, HEADS, C, BK, BLOCKS)
        dstate = write(b_q, SCALE * b_enter[:, None] * b_do, across, dstate, PRECISION, BLOCKS)
        dstate = write(b_k, -b_enter[:, None] * dv, 1.0, dstate, PRECISION, BLOCKS)
    if STATE:
        store_state(p_dinitial, dstate, slot, column, K, V, BK, BV)
