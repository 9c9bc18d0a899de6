"""The last of the Triton kernels of diagonal plus rank one, which take the gradients of rows; see `rank_one_decay`."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.cuts import border_decays, from_cut, in_blocks, masked_sums, parted, to_cut
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
def _load_diagonal(p_x, at, ROWS: tl.constexpr, C: tl.constexpr):
    """The blocks [C // ROWS, ROWS, ROWS] along the diagonal of ``x[at]`` of [.., C, C]."""
    block = tl.arange(0, C // ROWS)[:, None, None] * (ROWS * (C + 1))
    inside = tl.arange(0, ROWS)[None, :, None] * C + tl.arange(0, ROWS)[None, None, :]
    return tl.load(p_x + at * C * C + block + inside)


@triton.jit
def _two_products(x, y, u, v, PRECISION: tl.constexpr):
    """x y + u v."""
    return tl.dot(u, v, tl.dot(x, y, input_precision=PRECISION), input_precision=PRECISION)


@triton.jit
def _add_parted(
    gradients, rows, p_scores, at, first, end, ROWS: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to gradients of a, q, b, k and g what pairs of rows give that cuts part, within blocks of ROWS rows."""
    a, q, b = in_blocks(rows[0], ROWS, C, BK), in_blocks(rows[1], ROWS, C, BK), in_blocks(rows[2], ROWS, C, BK)
    k, g = in_blocks(rows[3], ROWS, C, BK), in_blocks(rows[4], ROWS, C, BK)
    da, dq = in_blocks(gradients[0], ROWS, C, BK), in_blocks(gradients[1], ROWS, C, BK)
    db, dk = in_blocks(gradients[2], ROWS, C, BK), in_blocks(gradients[3], ROWS, C, BK)
    dg = in_blocks(gradients[4], ROWS, C, BK)
    b_dab, b_dak = _load_diagonal(p_scores[0], at, ROWS, C), _load_diagonal(p_scores[1], at, ROWS, C)
    b_dqb, b_dqk = _load_diagonal(p_scores[2], at, ROWS, C), _load_diagonal(p_scores[3], at, ROWS, C)
    dtype = b_dab.dtype
    for cut in range(first, end):
        between = tl.exp(masked_sums(to_cut(cut, ROWS), g, PRECISION))
        pairs = parted(cut, ROWS)
        dab, dak = tl.where(pairs, b_dab, 0.0), tl.where(pairs, b_dak, 0.0)
        dqb, dqk = tl.where(pairs, b_dqb, 0.0), tl.where(pairs, b_dqk, 0.0)
        since_a, since_q = (a * between).to(dtype), (q * between).to(dtype)
        until_b, until_k = (b * between).to(dtype), (k * between).to(dtype)
        of_a = between * _two_products(dab, until_b, dak, until_k, PRECISION)
        of_q = between * _two_products(dqb, until_b, dqk, until_k, PRECISION)
        dab, dak, dqb, dqk = tl.trans(dab), tl.trans(dak), tl.trans(dqb), tl.trans(dqk)
        of_b = between * _two_products(dab, since_a, dqb, since_q, PRECISION)
        of_k = between * _two_products(dak, since_a, dqk, since_q, PRECISION)
        dg += masked_sums(from_cut(cut, ROWS), a * of_a + q * of_q + b * of_b + k * of_k, PRECISION)
        da += of_a
        dq += of_q
        db += of_b
        dk += of_k
    da, dq, db = tl.reshape(da, (C, BK)), tl.reshape(dq, (C, BK)), tl.reshape(db, (C, BK))
    return da, dq, db, tl.reshape(dk, (C, BK)), tl.reshape(dg, (C, BK))


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
    dtype = p_q.dtype.element_ty

    # a gate lies on the paths from the chunk's start to later rows, from earlier rows to its end, and across
    enter, leave, across = border_decays(b_g, b_document, cuts, DOCUMENTS, PRECISION, C)
    da *= enter
    dq *= enter
    db *= leave
    dk *= leave
    dg = (across * dacross)[None, :] + masked_sums(to_cut(cuts, C), b_a * da + decayed * dq, PRECISION)
    dg += masked_sums(from_cut(cuts, C), b_b * db + b_k * dk, PRECISION)

    # and on those between the rows of the chunk, by the cut that parts them
    rows, scores = (b_a, decayed, b_b, b_k, b_g), (p_dab, p_dak, p_dqb, p_dqk)
    gradients = _add_parted((da, dq, db, dk, dg), rows, scores, at, 0, tl.minimum(cuts, 4), 16, C, BK, PRECISION)
    if C >= 32:
        gradients = _add_parted(gradients, rows, scores, at, 4, 5, 32, C, BK, PRECISION)
    if C >= 64:
        gradients = _add_parted(gradients, rows, scores, at, 5, 6, 64, C, BK, PRECISION)
    da, dq, db, dk, dg = gradients

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
