"""The last of the Triton kernels of diagonal plus rank one, which take the gradients of rows; see `rank_one_decay`."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.cuts import border_decays, from_cut, masked_sums, parted, to_cut
from pallas_kernels.gpu.decays import load_documents
from pallas_kernels.gpu.tiles import place_of, square, tile


@triton.jit
def score_gradients_kernel(
    p_v, p_u, p_do, p_dread, p_document, p_dab, p_dak, p_dqb, p_dqk,
    HEADS: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores of one chunk and head: of what u and v give to later rows' reads."""
    row, head, at = place_of(tl.program_id(0), HEADS, C)
    dab = tl.zeros((C, C), tl.float32)
    dak = tl.zeros((C, C), tl.float32)
    dqb = tl.zeros((C, C), tl.float32)
    dqk = tl.zeros((C, C), tl.float32)
    for column in range(0, V, BV):
        b_v = tl.trans(tl.load(tile(p_v, row, head, column, HEADS, V, C, BV)))
        b_u = tl.trans(tl.load(tile(p_u, row, head, column, HEADS, V, C, BV)))
        b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
        b_dread = tl.load(tile(p_dread, row, head, column, HEADS, V, C, BV))
        dab = tl.dot(b_dread, b_u, dab, input_precision=PRECISION)
        dak = tl.dot(b_dread, b_v, dak, input_precision=PRECISION)
        dqb = tl.dot(b_do, b_u, dqb, input_precision=PRECISION)
        dqk = tl.dot(b_do, b_v, dqk, input_precision=PRECISION)
    if DOCUMENTS:
        b_document = load_documents(p_document, row, DOCUMENTS, C)
        same = b_document[:, None] == b_document[None, :]
        dab = tl.where(same, dab, 0.0)
        dak = tl.where(same, dak, 0.0)
        dqb = tl.where(same, dqb, 0.0)
        dqk = tl.where(same, dqk, 0.0)
    dtype = p_dab.dtype.element_ty
    tl.store(square(p_dab, at, C), dab.to(dtype))
    tl.store(square(p_dak, at, C), dak.to(dtype))
    tl.store(square(p_dqb, at, C), dqb.to(dtype))
    tl.store(square(p_dqk, at, C), dqk.to(dtype))


@triton.jit
def _through_states(
    p_v, p_u, p_do, p_dread, p_borders, p_leaving, row, head, at, key,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what a and q read of the entering state, b and k write to the leaving one [C, BK], and of across."""
    da = tl.zeros((C, BK), tl.float32)
    dq = tl.zeros((C, BK), tl.float32)
    db = tl.zeros((C, BK), tl.float32)
    dk = tl.zeros((C, BK), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    for column in range(0, V, BV):
        b_border = tl.load(tile(p_borders, at * K + key, 0, column, 1, V, BK, BV))
        b_leaving = tl.load(tile(p_leaving, at * K + key, 0, column, 1, V, BK, BV))
        dacross += tl.sum(b_border.to(tl.float32) * b_leaving.to(tl.float32), axis=1)
        b_border, b_leaving = tl.trans(b_border), tl.trans(b_leaving)
        b_dread = tl.load(tile(p_dread, row, head, column, HEADS, V, C, BV))
        da = tl.dot(b_dread, b_border, da, input_precision=PRECISION)
        b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
        dq = tl.dot(b_do, b_border, dq, input_precision=PRECISION)
        b_u = tl.load(tile(p_u, row, head, column, HEADS, V, C, BV))
        db = tl.dot(b_u, b_leaving, db, input_precision=PRECISION)
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV))
        dk = tl.dot(b_v, b_leaving, dk, input_precision=PRECISION)
    return da, dq, db, dk, dacross


@triton.jit
def gradients_kernel(
    p_q, p_k, p_a, p_b, p_g, p_v, p_document, p_u, p_do, p_dread, p_borders, p_leaving, p_dab, p_dak, p_dqb, p_dqk,
    p_dq, p_dk, p_da, p_db, p_dg, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows of one chunk and head, a block of keys."""
    row, head, at = place_of(tl.program_id(0) // (K // BK), HEADS, C)
    key = (tl.program_id(0) % (K // BK)) * BK
    da, dq, db, dk, dacross = _through_states(
        p_v, p_u, p_do, p_dread, p_borders, p_leaving, row, head, at, key, HEADS, K, V, C, BK, BV, PRECISION
    )
    b_q = SCALE * tl.load(tile(p_q, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_a = tl.load(tile(p_a, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_b = tl.load(tile(p_b, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_g = tl.load(tile(p_g, row, head, key, HEADS, K, C, BK))
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    decayed = b_q * tl.exp(b_g)

    # a gate lies on the paths from the chunk's start to later rows, from earlier rows to its end, and across
    enter, leave, across = border_decays(b_g, b_document, cuts, DOCUMENTS, PRECISION, C)
    da *= enter
    dq *= enter
    db *= leave
    dk *= leave
    dg = (across * dacross)[None, :] + masked_sums(to_cut(cuts, C), b_a * da + decayed * dq, PRECISION)
    dg += masked_sums(from_cut(cuts, C), b_b * db + b_k * dk, PRECISION)

    # and on those between the rows of the chunk, by the cut that parts them
    dtype = p_q.dtype.element_ty
    for cut in range(cuts):  # a bound that is no constant keeps the loop a loop, in fewer registers
        between = tl.exp(masked_sums(to_cut(cut, C), b_g, PRECISION))
        since_a, since_q = (b_a * between).to(dtype), (decayed * between).to(dtype)
        until_b, until_k = (b_b * between).to(dtype), (b_k * between).to(dtype)
        pairs = parted(cut, C)
        b_dab = tl.load(square(p_dab, at, C), mask=pairs, other=0.0)
        near_a = tl.dot(b_dab, until_b, input_precision=PRECISION)
        near_b = tl.dot(tl.trans(b_dab), since_a, input_precision=PRECISION)
        b_dak = tl.load(square(p_dak, at, C), mask=pairs, other=0.0)
        near_a = between * tl.dot(b_dak, until_k, near_a, input_precision=PRECISION)
        near_k = tl.dot(tl.trans(b_dak), since_a, input_precision=PRECISION)
        b_dqb = tl.load(square(p_dqb, at, C), mask=pairs, other=0.0)
        near_q = tl.dot(b_dqb, until_b, input_precision=PRECISION)
        near_b = between * tl.dot(tl.trans(b_dqb), since_q, near_b, input_precision=PRECISION)
        b_dqk = tl.load(square(p_dqk, at, C), mask=pairs, other=0.0)
        near_q = between * tl.dot(b_dqk, until_k, near_q, input_precision=PRECISION)
        near_k = between * tl.dot(tl.trans(b_dqk), since_q, near_k, input_precision=PRECISION)
        dg += masked_sums(from_cut(cut, C), b_a * near_a + decayed * near_q + b_b * near_b + b_k * near_k, PRECISION)
        da += near_a
        dq += near_q
        db += near_b
        dk += near_k

    # q reads behind its own row's decay, and what its row writes as it is
    dg += decayed * dq
    itself = at * C * C + tl.arange(0, C) * (C + 1)
    of_b = tl.load(p_dqb + itself).to(tl.float32)[:, None]
    of_k = tl.load(p_dqk + itself).to(tl.float32)[:, None]
    dq = SCALE * (tl.exp(b_g) * dq + of_b * b_b + of_k * b_k)
    tl.store(tile(p_dq, row, head, key, HEADS, K, C, BK), dq.to(dtype))
    tl.store(tile(p_dk, row, head, key, HEADS, K, C, BK), (dk + of_k * b_q).to(dtype))
    tl.store(tile(p_da, row, head, key, HEADS, K, C, BK), da.to(dtype))
    tl.store(tile(p_db, row, head, key, HEADS, K, C, BK), (db + of_b * b_q).to(dtype))
    tl.store(tile(p_dg, row, head, key, HEADS, K, C, BK), dg)
