"""The last of the gated delta rule's Triton kernels, which takes the gradients of a chunk's rows; see `delta_rule`."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from pallas_kernels.gpu.decays import decays_between, load_documents
from pallas_kernels.gpu.delta_rule_kernels import pair_of
from pallas_kernels.gpu.tiles import per_row, tile


@triton.jit
def _no_gradients(
    p_dq, p_dk, p_dg, p_dbeta, row, head,
    HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """0 for the gradients of an unused chunk."""
    dtype = p_dq.dtype.element_ty
    for column in range(0, K, BK):
        tl.store(tile(p_dq, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
        tl.store(tile(p_dk, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
    tl.store(per_row(p_dg, row, head, HEADS, C), tl.zeros((C,), tl.float32))
    tl.store(per_row(p_dbeta, row, head, HEADS, C), tl.zeros((C,), tl.float32))


@triton.jit
def _met(
    p_error, p_do, p_dv, reader, writer, head,
    HEADS: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``do error^T`` and ``dv error^T``, float32 [C, C], of the rows from ``reader`` and the errors from ``writer``."""
    outputs = tl.zeros((C, C), tl.float32)
    values = tl.zeros((C, C), tl.float32)
    for column in range(0, V, BV):
        b_error = tl.load(tile(p_error, writer, head, column, HEADS, V, C, BV))
        b_do = tl.load(tile(p_do, reader, head, column, HEADS, V, C, BV))
        b_dv = tl.load(tile(p_dv, reader, head, column, HEADS, V, C, BV))
        outputs = tl.dot(b_do, tl.trans(b_error), outputs, input_precision=PRECISION)
        values = tl.dot(b_dv, tl.trans(b_error), values, input_precision=PRECISION)
    return outputs, values


@triton.jit
def gradients_kernel(
    p_q, p_k, p_g, p_beta, p_document, p_scores, p_enter, p_leave, p_segment, p_place, p_border, p_error, p_do,
    p_dborder, p_dv,
    p_dq, p_dk, p_dg, p_dbeta, p_beyond,
    segments,
    SCALE: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk's rows from the states that enter and leave its pair; grid (chunks, HEADS).

    Between the chunk and the state on the other side of its pair lie the rows of the other chunk, if there is one.
    ``beyond`` [chunks, HEADS] is what the other chunk's program adds to the gradients of all of a chunk's gates.
    """
    chunk = tl.program_id(0)
    row = chunk.to(tl.int64) * C
    head = tl.program_id(1)
    segment = tl.load(p_segment + chunk)
    if segment == segments:
        _no_gradients(p_dq, p_dk, p_dg, p_dbeta, row, head, HEADS, K, C, BK)
        tl.store(p_beyond + chunk * HEADS + head, 0.0)
        return
    place = tl.load(p_place + chunk)
    second = place % 2 == 1
    other = tl.where(second, chunk - 1, tl.minimum(chunk + 1, tl.num_programs(0) - 1))
    alone = (other == chunk) | (tl.load(p_segment + other) != segment)
    other = tl.where(alone, chunk, other).to(tl.int64) * C
    pair = (pair_of(segment, chunk - place, place).to(tl.int64) * HEADS + head) * K
    dtype = p_k.dtype.element_ty
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))

    # through the triangles: what a row writes reaches the outputs of later rows, and what they write
    dscores, dstrict = _met(p_error, p_do, p_dv, row, row, head, HEADS, V, C, BV, PRECISION)
    gram = tl.zeros((C, C), tl.float32)
    for column in range(0, K, BK):
        b_k = tl.load(tile(p_k, row, head, column, HEADS, K, C, BK))
        gram = tl.dot(b_k, tl.trans(b_k), gram, input_precision=PRECISION)
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    between = decays_between(tl.load(per_row(p_g, row, head, HEADS, C)), b_document, DOCUMENTS, C)
    dstrict = tl.where(t > i, -between * dstrict, 0.0)
    b_scores = tl.load(tile(p_scores, row, head, 0, HEADS, C, C, C)).to(tl.float32)
    through = dscores * b_scores + dstrict * gram
    dbeta = tl.sum(through, axis=0)

    # the gate of row j lies on every path from a row i < j to a row t >= j
    paths = tl.cumsum(through * b_beta[None, :], axis=0, reverse=True)
    dg = tl.sum(tl.where(t > i, paths, 0.0), axis=1)
    dstrict *= b_beta[None, :]
    dscores = (SCALE * between * b_beta[None, :] * dscores).to(dtype)
    dgram = (dstrict + tl.trans(dstrict)).to(dtype)

    # through the states that enter and leave the pair, and through the other chunk's rows
    outputs, values = _met(
        p_error, p_do, p_dv, tl.where(second, row, other), tl.where(second, other, row), head,
        HEADS, V, C, BV, PRECISION,
    )  # fmt: skip
    outputs = outputs.to(dtype)
    values = values.to(dtype)
    beside = tl.where(alone, 1.0, tl.load(p_enter + (other + C - 1) * HEADS + head))
    denter = tl.zeros((C,), tl.float32)
    dleave = tl.zeros((C,), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    beyond = 0.0
    for begin in tl.range(0, K, BK, disable_licm=True):
        dq = tl.zeros((C, BK), tl.float32)
        dreads = tl.zeros((C, BK), tl.float32)
        dwrites = tl.zeros((C, BK), tl.float32)
        for column in range(0, V, BV):
            b_border = tl.load(tile(p_border, pair + begin, 0, column, 1, V, BK, BV))
            b_dborder = tl.load(tile(p_dborder, pair + begin, 0, column, 1, V, BK, BV))
            dacross += tl.sum(b_border.to(tl.float32) * b_dborder.to(tl.float32), axis=1)
            b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
            dq = tl.dot(b_do, tl.trans(b_border), dq, input_precision=PRECISION)
            b_dv = tl.load(tile(p_dv, row, head, column, HEADS, V, C, BV))
            dreads = tl.dot(b_dv, tl.trans(b_border), dreads, input_precision=PRECISION)
            b_error = tl.load(tile(p_error, row, head, column, HEADS, V, C, BV))
            dwrites = tl.dot(b_error, tl.trans(b_dborder), dwrites, input_precision=PRECISION)
        # gates are read again for each block, instead of being kept in registers
        b_enter = tl.load(per_row(p_enter, row, head, HEADS, C))
        b_leave = tl.load(per_row(p_leave, row, head, HEADS, C))
        b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))
        b_k = tl.load(tile(p_k, row, head, begin, HEADS, K, C, BK))
        b_q = tl.load(tile(p_q, row, head, begin, HEADS, K, C, BK))
        if second:
            beyond += tl.sum(b_enter * tl.sum(SCALE * b_q * dq - b_k * dreads, axis=1))
            future = tl.load(per_row(p_leave, other, head, HEADS, C)) * tl.load(per_row(p_beta, other, head, HEADS, C))
            written = tl.load(tile(p_k, other, head, begin, HEADS, K, C, BK))
            written = (future[:, None] * written).to(dtype)
            dq = tl.dot(outputs, written, beside * dq, input_precision=PRECISION)
            dreads = tl.dot(values, written, beside * dreads, input_precision=PRECISION)
        elif not alone:
            beyond += tl.sum(b_leave * b_beta * tl.sum(b_k * dwrites, axis=1))
            past = tl.load(per_row(p_enter, other, head, HEADS, C))
            asked = tl.load(tile(p_q, other, head, begin, HEADS, K, C, BK))
            asked = (SCALE * past[:, None] * asked).to(dtype)
            dwrites = tl.dot(tl.trans(outputs), asked, beside * dwrites, input_precision=PRECISION)
            recalled = tl.load(tile(p_k, other, head, begin, HEADS, K, C, BK))
            recalled = (-past[:, None] * recalled).to(dtype)
            dwrites = tl.dot(tl.trans(values), recalled, dwrites, input_precision=PRECISION)
        dreads = -b_enter[:, None] * dreads
        denter += tl.sum(b_k * dreads, axis=1)
        dwrites = b_leave[:, None] * dwrites
        dleave += tl.sum(b_k * dwrites, axis=1)
        dk = tl.dot(tl.trans(dscores), b_q, dreads + b_beta[:, None] * dwrites, input_precision=PRECISION)
        dk = tl.dot(dgram, b_k, dk, input_precision=PRECISION)
        tl.store(tile(p_dk, row, head, begin, HEADS, K, C, BK), dk.to(dtype))
        dq = SCALE * b_enter[:, None] * dq
        denter += tl.sum(b_q * dq, axis=1)
        dq = tl.dot(dscores, b_k, dq, input_precision=PRECISION)
        tl.store(tile(p_dq, row, head, begin, HEADS, K, C, BK), dq.to(dtype))

    # it also lies on the paths from before the chunk to rows t >= j, from rows i < j to what follows it, and across it
    dg += tl.cumsum(denter, axis=0, reverse=True)
    b_beta = tl.load(per_row(p_beta, row, head, HEADS, C))
    dg += tl.sum(tl.where(t > i, (b_beta * dleave)[None, :], 0.0), axis=1)
    across = tl.load(p_enter + (row + C - 1) * HEADS + head)
    tl.store(per_row(p_dg, row, head, HEADS, C), dg + across * beside * tl.sum(dacross, axis=0))
    tl.store(per_row(p_dbeta, row, head, HEADS, C), dbeta + dleave)
    tl.store(p_beyond + (other // C) * HEADS + head, beside * beyond)
