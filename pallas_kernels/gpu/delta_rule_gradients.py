"""The last of the gated delta rule's Triton kernels, which takes the gradients of a chunk's rows; see `delta_rule`."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.decays import decays_between, load_documents
from pallas_kernels.gpu.delta_rule_kernels import written_by
from pallas_kernels.gpu.tiles import per_row, tile


@triton.jit
def _no_gradients(
    p_dq, p_dk, p_dv, p_dg, p_dbeta, row, head,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """0 for the gradients of an unused chunk."""
    dtype = p_dq.dtype.element_ty
    for column in range(0, K, BK):
        tl.store(tile(p_dq, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
        tl.store(tile(p_dk, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
    for column in range(0, V, BV):
        tl.store(tile(p_dv, row, head, column, HEADS, V, C, BV), tl.zeros((C, BV), dtype))
    tl.store(per_row(p_dg, row, head, HEADS, C), tl.zeros((C,), tl.float32))
    tl.store(per_row(p_dbeta, row, head, HEADS, C), tl.zeros((C,), tl.float32))


@triton.jit
def gradients_kernel(
    p_q, p_k, p_g, p_beta, p_document, p_inverse, p_scores, p_enter, p_leave, p_segment, p_border, p_residual, p_do,
    p_dborder, p_dwritten,
    p_dq, p_dk, p_dv, p_dg, p_dbeta,
    segments,
    SCALE: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk's rows, once those of the states at its borders are known; grid (chunks, HEADS)."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk * C
    head = tl.program_id(1)
    if tl.load(p_segment + chunk) == segments:
        _no_gradients(p_dq, p_dk, p_dv, p_dg, p_dbeta, row, head, HEADS, K, V, C, BK, BV)
        return
    dtype = p_k.dtype.element_ty
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))
    b_inverse = tl.load(tile(p_inverse, row, head, 0, HEADS, C, C, C))

    # through the triangles: what a row writes reaches the outputs of later rows, and what they write
    dscores = tl.zeros((C, C), tl.float32)
    dstrict = tl.zeros((C, C), tl.float32)
    dbeta = tl.zeros((C,), tl.float32)
    for column in range(0, V, BV):
        b_residual = tl.load(tile(p_residual, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        update = tl.trans(written_by(b_residual, b_beta, b_inverse, PRECISION)).to(dtype)
        b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
        b_dwritten = tl.load(tile(p_dwritten, row, head, column, HEADS, V, C, BV))
        dscores = tl.dot(b_do, update, dscores, input_precision=PRECISION)
        dstrict = tl.dot(b_dwritten, update, dstrict, input_precision=PRECISION)
        dbeta += tl.sum(b_dwritten * b_residual, axis=1)
        tl.store(tile(p_dv, row, head, column, HEADS, V, C, BV), (b_beta[:, None] * b_dwritten).to(dtype))

    gram = tl.zeros((C, C), tl.float32)
    for column in range(0, K, BK):
        b_k = tl.load(tile(p_k, row, head, column, HEADS, K, C, BK))
        gram = tl.dot(b_k, tl.trans(b_k), gram, input_precision=PRECISION)
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    between = decays_between(tl.load(per_row(p_g, row, head, HEADS, C)), b_document, DOCUMENTS, C)
    dstrict = tl.where(t > i, -between * dstrict, 0.0)
    tl.store(per_row(p_dbeta, row, head, HEADS, C), dbeta + tl.sum(dstrict * gram, axis=1))
    dstrict = b_beta[:, None] * dstrict

    # the gate of row j lies on every path from a row i < j to a row t >= j
    b_scores = tl.load(tile(p_scores, row, head, 0, HEADS, C, C, C)).to(tl.float32)
    paths = tl.cumsum(dscores * b_scores + dstrict * gram, axis=0, reverse=True)
    dg = tl.sum(tl.where(t > i, paths, 0.0), axis=1)
    dscores = (SCALE * between * dscores).to(dtype)
    dgram = (dstrict + tl.trans(dstrict)).to(dtype)

    # through the states that enter and leave the chunk
    b_enter = tl.load(per_row(p_enter, row, head, HEADS, C))
    b_leave = tl.load(per_row(p_leave, row, head, HEADS, C))
    denter = tl.zeros((C,), tl.float32)
    dleave = tl.zeros((C,), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    for begin in range(0, K, BK):
        dq = tl.zeros((C, BK), tl.float32)
        dreads = tl.zeros((C, BK), tl.float32)
        dwrites = tl.zeros((C, BK), tl.float32)
        for column in range(0, V, BV):
            b_border = tl.load(tile(p_border, (chunk * HEADS + head) * K + begin, 0, column, 1, V, BK, BV))
            b_dborder = tl.load(tile(p_dborder, (chunk * HEADS + head) * K + begin, 0, column, 1, V, BK, BV))
            dacross += tl.sum(b_border.to(tl.float32) * b_dborder.to(tl.float32), axis=1)
            b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
            dq = tl.dot(b_do, tl.trans(b_border), dq, input_precision=PRECISION)
            b_dwritten = tl.load(tile(p_dwritten, row, head, column, HEADS, V, C, BV))
            dv = (b_beta[:, None] * b_dwritten).to(dtype)
            dreads = tl.dot(dv, tl.trans(b_border), dreads, input_precision=PRECISION)
            b_residual = tl.load(tile(p_residual, row, head, column, HEADS, V, C, BV)).to(tl.float32)
            update = written_by(b_residual, b_beta, b_inverse, PRECISION).to(dtype)
            dwrites = tl.dot(update, tl.trans(b_dborder), dwrites, input_precision=PRECISION)
        dq = SCALE * b_enter[:, None] * dq
        dreads = -b_enter[:, None] * dreads
        dwrites = b_leave[:, None] * dwrites
        b_k = tl.load(tile(p_k, row, head, begin, HEADS, K, C, BK))
        b_q = tl.load(tile(p_q, row, head, begin, HEADS, K, C, BK))
        denter += tl.sum(b_q * dq + b_k * dreads, axis=1)
        dleave += tl.sum(b_k * dwrites, axis=1)
        dq = tl.dot(dscores, b_k, dq, input_precision=PRECISION)
        tl.store(tile(p_dq, row, head, begin, HEADS, K, C, BK), dq.to(dtype))
        dk = tl.dot(tl.trans(dscores), b_q, dreads + dwrites, input_precision=PRECISION)
        dk = tl.dot(dgram, b_k, dk, input_precision=PRECISION)
        tl.store(tile(p_dk, row, head, begin, HEADS, K, C, BK), dk.to(dtype))

    # it also lies on the paths from the chunk's start to rows t >= j, from rows i < j to its end, and across it
    dg += tl.cumsum(denter, axis=0, reverse=True)
    dg += tl.sum(tl.where(t > i, dleave[None, :], 0.0), axis=1)
    across = tl.load(p_enter + (row + C - 1) * HEADS + head)
    tl.store(per_row(p_dg, row, head, HEADS, C), dg + across * tl.sum(dacross, axis=0))
