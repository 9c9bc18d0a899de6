"""Triton kernels of diagonal plus rank one but for the rows' gradients; `rank_one_decay` has the equations.

Letters name rows by what they do: a and q read the state, b and k write it. What is [C, C] for each chunk and head is
named by its rows and columns, so that ``qb`` takes what b writes to what q reads.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.cuts import (
    below_diagonal,
    border_decays,
    halves,
    in_blocks,
    masked_sums,
    on_diagonal,
    parted,
    to_cut,
    to_middle,
)
from pallas_kernels.gpu.decays import load_documents
from pallas_kernels.gpu.states import decay, load_rows, load_state, read, store_state, write
from pallas_kernels.gpu.tiles import load_run, place_of, square, tile
from pallas_kernels.gpu.triangular import unit_lower_inverse


@triton.jit
def _add_scores(scores, a, q, b, k, g, cut, ROWS: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr):
    """Adds products of rows [ROWS, BK] that a cut parts to (ab), (ak), (qb) and (qk); or of several such blocks."""
    ab, ak, qb, qk = scores
    between = tl.exp(masked_sums(to_cut(cut, ROWS), g, PRECISION))
    since_a, since_q = (a * between).to(dtype), (q * between).to(dtype)
    until_b, until_k = tl.trans((b * between).to(dtype)), tl.trans((k * between).to(dtype))
    pairs = parted(cut, ROWS)
    ab += tl.where(pairs, tl.dot(since_a, until_b, input_precision=PRECISION), 0.0)
    ak += tl.where(pairs, tl.dot(since_a, until_k, input_precision=PRECISION), 0.0)
    qb += tl.where(pairs, tl.dot(since_q, until_b, input_precision=PRECISION), 0.0)
    qk += tl.where(pairs, tl.dot(since_q, until_k, input_precision=PRECISION), 0.0)
    return ab, ak, qb, qk


@triton.jit
def _add_halves(
    scores, a, q, b, k, g,
    HALF: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Adds products of rows that a cut in the middle of 2 HALF rows parts, [C // 2 HALF, HALF, HALF]."""
    ab, ak, qb, qk = scores
    first, second = halves(g, HALF, C, BK)
    before, since = to_middle(first, second, HALF, PRECISION)
    _, a = halves(a, HALF, C, BK)
    _, q = halves(q, HALF, C, BK)
    b, _ = halves(b, HALF, C, BK)
    k, _ = halves(k, HALF, C, BK)
    a, q = (a * since).to(dtype), (q * since).to(dtype)
    b, k = tl.trans((b * before).to(dtype)), tl.trans((k * before).to(dtype))
    ab = tl.dot(a, b, ab, input_precision=PRECISION)
    ak = tl.dot(a, k, ak, input_precision=PRECISION)
    qb = tl.dot(q, b, qb, input_precision=PRECISION)
    qk = tl.dot(q, k, qk, input_precision=PRECISION)
    return ab, ak, qb, qk


@triton.jit
def _whole(parts, number: tl.constexpr, b_document, DOCUMENTS: tl.constexpr, C: tl.constexpr):
    """One of the four scores [C, C], from its part within 16 rows and those between halves of 32 and 64 rows."""
    scores = on_diagonal(parts[0][number], C)
    if C >= 32:
        scores += below_diagonal(parts[1][number], 16, C)
    if C >= 64:
        scores += below_diagonal(parts[2][number], 32, C)
    if DOCUMENTS:
        scores = tl.where(b_document[:, None] == b_document[None, :], scores, 0.0)
    return scores


@triton.jit
def prepare_kernel(
    p_q, p_k, p_a, p_b, p_g, p_document,
    p_reads_a, p_reads_q, p_writes_b, p_writes_k, p_across, p_inverse, p_ak, p_qb, p_qk, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What of one chunk and head needs no state: rows decayed to its borders, scores, and the inverse of I - (ab)."""
    row, head, at = place_of(tl.program_id(0), HEADS, C)
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    dtype = p_inverse.dtype.element_ty
    if C >= 64:
        zeros = tl.zeros((C // 64, 32, 32), tl.float32)
        far = (zeros, zeros, zeros, zeros)
    if C >= 32:
        zeros = tl.zeros((C // 32, 16, 16), tl.float32)
        middle = (zeros, zeros, zeros, zeros)
    zeros = tl.zeros((C // 16, 16, 16), tl.float32)
    near = (zeros, zeros, zeros, zeros)
    b_itself = tl.zeros((C,), tl.float32)
    k_itself = tl.zeros((C,), tl.float32)
    for key in tl.range(0, K, BK, disable_licm=True):
        b_q = SCALE * tl.load(tile(p_q, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_a = tl.load(tile(p_a, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_b = tl.load(tile(p_b, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_g = tl.load(tile(p_g, row, head, key, HEADS, K, C, BK))
        b_itself += tl.sum(b_q * b_b, axis=1)
        k_itself += tl.sum(b_q * b_k, axis=1)
        b_q *= tl.exp(b_g)  # q reads behind its row's decay, a before it
        enter, leave, across = border_decays(b_g, b_document, cuts, DOCUMENTS, PRECISION, C)
        tl.store(tile(p_reads_a, row, head, key, HEADS, K, C, BK), (b_a * enter).to(dtype))
        tl.store(tile(p_reads_q, row, head, key, HEADS, K, C, BK), (b_q * enter).to(dtype))
        tl.store(tile(p_writes_b, row, head, key, HEADS, K, C, BK), (b_b * leave).to(dtype))
        tl.store(tile(p_writes_k, row, head, key, HEADS, K, C, BK), (b_k * leave).to(dtype))
        tl.store(p_across + at * K + key + tl.arange(0, BK), across)
        if C >= 32:
            middle = _add_halves(middle, b_a, b_q, b_b, b_k, b_g, 16, C, BK, PRECISION, dtype)
        if C >= 64:
            far = _add_halves(far, b_a, b_q, b_b, b_k, b_g, 32, C, BK, PRECISION, dtype)
        b_a, b_q = in_blocks(b_a, 16, C, BK), in_blocks(b_q, 16, C, BK)
        b_b, b_k = in_blocks(b_b, 16, C, BK), in_blocks(b_k, 16, C, BK)
        b_g = in_blocks(b_g, 16, C, BK)
        for cut in range(tl.minimum(cuts, 4)):  # a bound that is no constant keeps a loop a loop, in fewer registers
            near = _add_scores(near, b_a, b_q, b_b, b_k, b_g, cut, 16, PRECISION, dtype)

    parts = (near,)
    if C >= 32:
        parts = (near, middle)
    if C >= 64:
        parts = (near, middle, far)
    tl.store(square(p_ak, at, C), _whole(parts, 1, b_document, DOCUMENTS, C).to(dtype))
    itself = tl.arange(0, C)[:, None] == tl.arange(0, C)[None, :]
    qb = _whole(parts, 2, b_document, DOCUMENTS, C)
    tl.store(square(p_qb, at, C), (qb + tl.where(itself, b_itself[:, None], 0.0)).to(dtype))
    qk = _whole(parts, 3, b_document, DOCUMENTS, C)
    tl.store(square(p_qk, at, C), (qk + tl.where(itself, k_itself[:, None], 0.0)).to(dtype))
    ab = _whole(parts, 0, b_document, DOCUMENTS, C)
    tl.store(square(p_inverse, at, C), unit_lower_inverse(-ab, PRECISION, C).to(dtype))


@triton.jit
def _load_square(p_x, at, TRANSPOSED: tl.constexpr, C: tl.constexpr):
    b_x = tl.load(square(p_x, at, C))
    if TRANSPOSED:
        b_x = tl.trans(b_x)
    return b_x


@triton.jit
def along_kernel(
    p_reads_x, p_reads_o, p_writes_x, p_writes_v, p_inverse, p_xv, p_ox, p_ov, p_across, p_v, p_runs, p_initial,
    p_o, p_x, p_borders, p_final,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    OUTPUTS: tl.constexpr, BORDERS: tl.constexpr, STATE: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Runs a block of the state's columns through the chunks of one run and head, from its end if ``REVERSE``.

    From values v [C, BV]: ``x = inverse (xv v + reads_x S)``, outputs ``o = ov v + ox x + reads_o S`` if ``OUTPUTS``,
    then ``S = across S + writes_x^T x + writes_v^T v``. Keeps x and the states before each chunk if ``BORDERS``. In
    reverse the triangles are transposed. All are 0 in unused chunks, which are the last run.
    """
    BLOCKS: tl.constexpr = K // BK
    number = tl.program_id(0) // (V // BV)  # [segments + 1, HEADS]
    head = number % HEADS
    column = (tl.program_id(0) % (V // BV)) * BV
    dtype = p_v.dtype.element_ty
    segment, chunk, chunks = load_run(p_runs, number // HEADS)
    if number + HEADS >= tl.num_programs(0) // (V // BV):
        nothing = load_state(p_initial, chunk, column, False, K, V, BK, BV)
        for n in range(chunks):
            row = (chunk + n) * C
            if OUTPUTS:
                tl.store(tile(p_o, row, head, column, HEADS, V, C, BV), tl.zeros((C, BV), dtype))
            if BORDERS:
                tl.store(tile(p_x, row, head, column, HEADS, V, C, BV), tl.zeros((C, BV), dtype))
                store_state(p_borders, nothing, (chunk + n) * HEADS + head, column, K, V, BK, BV)
        return

    slot = segment.to(tl.int64) * HEADS + head
    state = load_state(p_initial, slot, column, STATE, K, V, BK, BV)
    for n in tl.range(chunks, disable_licm=p_v.dtype.element_ty == tl.float32):
        current = chunk + n
        if REVERSE:
            current = chunk + chunks - 1 - n
        row = current * C
        at = current * HEADS + head
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV))
        x = tl.dot(_load_square(p_xv, at, REVERSE, C), b_v, input_precision=PRECISION)
        x += read(load_rows(p_reads_x, row, head, HEADS, C, BK, BLOCKS), state, PRECISION, BLOCKS)
        x = tl.dot(_load_square(p_inverse, at, REVERSE, C), x.to(dtype), input_precision=PRECISION).to(dtype)
        if OUTPUTS:
            o = tl.dot(_load_square(p_ov, at, REVERSE, C), b_v, input_precision=PRECISION)
            o = tl.dot(_load_square(p_ox, at, REVERSE, C), x, o, input_precision=PRECISION)
            o += read(load_rows(p_reads_o, row, head, HEADS, C, BK, BLOCKS), state, PRECISION, BLOCKS)
            tl.store(tile(p_o, row, head, column, HEADS, V, C, BV), o.to(p_o.dtype.element_ty))
        if BORDERS:
            tl.store(tile(p_x, row, head, column, HEADS, V, C, BV), x)
            store_state(p_borders, state, at, column, K, V, BK, BV)
        state = decay(state, p_across, at, K, BK)
        state = write(load_rows(p_writes_x, row, head, HEADS, C, BK, BLOCKS), x, 1.0, state, PRECISION, BLOCKS)
        state = write(load_rows(p_writes_v, row, head, HEADS, C, BK, BLOCKS), b_v, 1.0, state, PRECISION, BLOCKS)
    if FINAL:
        store_state(p_final, state, slot, column, K, V, BK, BV)
