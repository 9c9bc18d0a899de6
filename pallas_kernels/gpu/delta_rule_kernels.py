"""The gated delta rule as five Triton kernels; `delta_rule` has the equations and calls them.

Letters: C rows of a chunk, K key and V value channels. Rows lie as [N, HEADS, width], states as [.., HEADS, K, V].
What is [C, C] for each chunk and head lies as rows of width C. Half-precision rows are multiplied in their own dtype
and summed in float32; ``PRECISION`` says how float32 rows are multiplied. States are float32 in registers, as tuples of
blocks of BK key channels; Triton knows no ``(*blocks, block)``.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.launch import Tuning
from pallas_kernels.gpu.parts import decays_between, unit_lower_inverse

_FLOAT32_NVIDIA = {
    "prepare": Tuning(32, 0, 4, 2),
    "forward": Tuning(64, 16, 4, 2),
    "borders": Tuning(64, 16, 4, 2),
    "reverse": Tuning(64, 16, 4, 2),
    "gradients": Tuning(32, 32, 8, 1),
}
_HALF_HOPPER = {
    "prepare": Tuning(64, 0, 4, 2),
    "forward": Tuning(256, 32, 4, 2),
    "borders": Tuning(256, 32, 4, 2),
    "reverse": Tuning(256, 32, 4, 2),
    "gradients": Tuning(64, 32, 8, 2),
}
# Matrix products of a chunk and head by kernel: of C K V, C C K and C C V multiplications.
PRODUCTS = {
    "prepare": (0, 2, 0),
    "forward": (3, 0, 2),
    "borders": (2, 0, 1),
    "reverse": (3, 0, 2),
    "gradients": (3, 4, 3),
}
# By generation, then bytes of an element. At K = V = 256 and C = 64 no kernel of half-precision rows spills registers,
# and all fit in shared memory. Float32 ones spill on NVIDIA whatever the blocks: tf32 parts of operands fill registers.
TUNING = {
    "sm_80": {
        2: {
            "prepare": Tuning(64, 0, 4, 2),
            "forward": Tuning(64, 16, 8, 2),
            "borders": Tuning(64, 32, 8, 2),
            "reverse": Tuning(64, 32, 8, 1),
            "gradients": Tuning(32, 32, 8, 2),
        },
        4: _FLOAT32_NVIDIA,
    },
    "sm_90": {2: _HALF_HOPPER, 4: _FLOAT32_NVIDIA},
    "sm_100": {2: _HALF_HOPPER, 4: _FLOAT32_NVIDIA},
    "gfx942": {
        2: {
            "prepare": Tuning(64, 0, 4, 1),
            "forward": Tuning(256, 32, 4, 1),
            "borders": Tuning(256, 32, 4, 1),
            "reverse": Tuning(256, 32, 4, 1),
            "gradients": Tuning(64, 32, 4, 1),
        },
        4: {
            "prepare": Tuning(64, 0, 4, 1),
            "forward": Tuning(64, 16, 4, 1),
            "borders": Tuning(64, 16, 4, 1),
            "reverse": Tuning(64, 16, 4, 1),
            "gradients": Tuning(32, 32, 4, 1),
        },
    },
}


@triton.jit
def _tile(x, row, head, column, HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to ``x[row : row + ROWS, head, column : column + COLUMNS]`` of [.., HEADS, WIDTH]."""
    inside = tl.arange(0, ROWS)[:, None] * (HEADS * WIDTH) + tl.arange(0, COLUMNS)[None, :]
    return x + (row * HEADS + head) * WIDTH + column + inside


@triton.jit
def _column(x, row, head, HEADS: tl.constexpr, C: tl.constexpr):
    """Pointers to ``x[row : row + C, head]`` of [N, HEADS]."""
    return x + row * HEADS + head + tl.arange(0, C) * HEADS


@triton.jit
def _load_state(
    x, index, head, column,
    STATE: tl.constexpr, HEADS: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """``x[index, head, :, column : column + BV]`` of [.., HEADS, BLOCKS * BK, V], as a tuple of [BK, BV]; or zeros."""
    state = ()
    for b in tl.static_range(BLOCKS):
        block = tl.zeros((BK, BV), tl.float32)
        if STATE:
            block = tl.load(_tile(x, ((index * HEADS + head) * BLOCKS + b) * BK, 0, column, 1, V, BK, BV))
        state = state + (block,)  # noqa: RUF005
    return state


@triton.jit
def _store_state(
    x, state, index, head, column,
    HEADS: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    for b in tl.static_range(BLOCKS):
        place = _tile(x, ((index * HEADS + head) * BLOCKS + b) * BK, 0, column, 1, V, BK, BV)
        tl.store(place, state[b].to(x.dtype.element_ty))


@triton.jit
def _load_rows(x, row, head, HEADS: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BLOCKS: tl.constexpr):
    """``x[row : row + C, head]`` of [N, HEADS, BLOCKS * BK], as a tuple of [C, BK]."""
    rows = ()
    for b in tl.static_range(BLOCKS):
        rows = rows + (tl.load(_tile(x, row, head, b * BK, HEADS, BLOCKS * BK, C, BK)),)  # noqa: RUF005
    return rows


@triton.jit
def _read(rows, state, PRECISION: tl.constexpr, BLOCKS: tl.constexpr):
    """What a state answers to rows, [C, BV]."""
    answer = tl.dot(rows[0], state[0].to(rows[0].dtype), input_precision=PRECISION)
    for b in tl.static_range(1, BLOCKS):
        answer = tl.dot(rows[b], state[b].to(rows[b].dtype), answer, input_precision=PRECISION)
    return answer


@triton.jit
def _write(rows, values, across, state, PRECISION: tl.constexpr, BLOCKS: tl.constexpr):
    """A state that decays by ``across`` and takes ``values`` [C, BV] at the keys ``rows``."""
    written = ()
    for b in tl.static_range(BLOCKS):
        block = tl.dot(tl.trans(rows[b]), values.to(rows[b].dtype), across * state[b], input_precision=PRECISION)
        written = written + (block,)  # noqa: RUF005
    return written


@triton.jit
def prepare_kernel(
    q, k, g, beta, document, inverse, scores, enter, leave,
    SCALE: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What of a chunk does not depend on the state; grid (chunks, HEADS).

    Writes inverse and scores [N, HEADS, C], the decays from the chunk's start to a row and from a row to its end
    [N, HEADS].
    """
    row = tl.program_id(0).to(tl.int64) * C
    head = tl.program_id(1)
    gram = tl.zeros((C, C), tl.float32)
    products = tl.zeros((C, C), tl.float32)
    for column in range(0, K, BK):
        keys = tl.load(_tile(k, row, head, column, HEADS, K, C, BK))
        queries = tl.load(_tile(q, row, head, column, HEADS, K, C, BK))
        gram = tl.dot(keys, tl.trans(keys), gram, input_precision=PRECISION)
        products = tl.dot(queries, tl.trans(keys), products, input_precision=PRECISION)

    gate = tl.load(_column(g, row, head, HEADS, C))
    number = tl.zeros((C,), tl.int32)
    if DOCUMENTS:
        number = tl.load(document + row + tl.arange(0, C))
    between = decays_between(gate, number, DOCUMENTS, C)
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    strength = tl.load(_column(beta, row, head, HEADS, C))
    strict = tl.where(t > i, strength[:, None] * between * gram, 0.0)

    entering = tl.exp(tl.where(number == 0, tl.cumsum(gate, axis=0), float("-inf")))
    leaving = tl.sum(tl.where(t == C - 1, between, 0.0), axis=0)
    dtype = k.dtype.element_ty
    tl.store(_column(enter, row, head, HEADS, C), entering)
    tl.store(_column(leave, row, head, HEADS, C), leaving)
    tl.store(_tile(scores, row, head, 0, HEADS, C, C, C), (SCALE * between * products).to(dtype))
    tl.store(_tile(inverse, row, head, 0, HEADS, C, C, C), unit_lower_inverse(strict, PRECISION, C).to(dtype))


@triton.jit
def _update(residual, strength, triangle, PRECISION: tl.constexpr):
    """What rows write, each after the rows before it, [C, BV]; ``residual`` is what a row finds missing on entry."""
    return tl.dot(triangle, (strength[:, None] * residual).to(triangle.dtype), input_precision=PRECISION)


@triton.jit
def forward_kernel(
    q, k, v, beta, inverse, scores, enter, leave, first, count, initial, o, final,
    STATE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs and final states; grid (V / BV, HEADS, runs of chunks), the last run being the unused chunks."""
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    run = tl.program_id(2)
    chunk = tl.load(first + run).to(tl.int64)
    chunks = tl.load(count + run)
    if run == tl.num_programs(2) - 1:
        for n in range(chunks):
            tl.store(_tile(o, (chunk + n) * C, head, column, HEADS, V, C, BV), tl.zeros((C, BV), o.dtype.element_ty))
        return

    state = _load_state(initial, run, head, column, STATE, HEADS, V, BK, BV, BLOCKS)
    for n in range(chunks):
        row = (chunk + n) * C
        keys = _load_rows(k, row, head, HEADS, C, BK, BLOCKS)
        value = tl.load(_tile(v, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        entering = tl.load(_column(enter, row, head, HEADS, C))
        residual = value - entering[:, None] * _read(keys, state, PRECISION, BLOCKS)
        strength = tl.load(_column(beta, row, head, HEADS, C))
        triangle = tl.load(_tile(inverse, row, head, 0, HEADS, C, C, C))
        update = _update(residual, strength, triangle, PRECISION)

        queries = _load_rows(q, row, head, HEADS, C, BK, BLOCKS)
        inside = tl.load(_tile(scores, row, head, 0, HEADS, C, C, C))
        output = SCALE * entering[:, None] * _read(queries, state, PRECISION, BLOCKS)
        output = tl.dot(inside, update.to(inside.dtype), output, input_precision=PRECISION)
        tl.store(_tile(o, row, head, column, HEADS, V, C, BV), output.to(o.dtype.element_ty))

        leaving = tl.load(_column(leave, row, head, HEADS, C))
        across = tl.load(enter + (row + C - 1) * HEADS + head)
        state = _write(keys, leaving[:, None] * update, across, state, PRECISION, BLOCKS)
    if STATE:
        _store_state(final, state, run, head, column, HEADS, V, BK, BV, BLOCKS)


@triton.jit
def borders_kernel(
    k, v, beta, inverse, enter, leave, first, count, initial, border, residual,
    STATE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """States that enter the chunks [chunks, HEADS, K, V], residuals [N, HEADS, V]; no program for unused chunks."""
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    run = tl.program_id(2)
    chunk = tl.load(first + run).to(tl.int64)
    state = _load_state(initial, run, head, column, STATE, HEADS, V, BK, BV, BLOCKS)
    for n in range(tl.load(count + run)):
        row = (chunk + n) * C
        _store_state(border, state, chunk + n, head, column, HEADS, V, BK, BV, BLOCKS)
        keys = _load_rows(k, row, head, HEADS, C, BK, BLOCKS)
        value = tl.load(_tile(v, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        entering = tl.load(_column(enter, row, head, HEADS, C))
        rest = value - entering[:, None] * _read(keys, state, PRECISION, BLOCKS)
        tl.store(_tile(residual, row, head, column, HEADS, V, C, BV), rest.to(residual.dtype.element_ty))

        strength = tl.load(_column(beta, row, head, HEADS, C))
        triangle = tl.load(_tile(inverse, row, head, 0, HEADS, C, C, C))
        leaving = tl.load(_column(leave, row, head, HEADS, C))
        across = tl.load(enter + (row + C - 1) * HEADS + head)
        update = _update(rest, strength, triangle, PRECISION)
        state = _write(keys, leaving[:, None] * update, across, state, PRECISION, BLOCKS)


@triton.jit
def reverse_kernel(
    q, k, beta, inverse, scores, enter, leave, first, count, do, dfinal, dborder, dwritten, dinitial,
    STATE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of the states that leave the chunks, of what rows write, and of initial states; as `borders_kernel`."""
    BLOCKS: tl.constexpr = K // BK
    column = tl.program_id(0) * BV
    head = tl.program_id(1)
    run = tl.program_id(2)
    chunk = tl.load(first + run).to(tl.int64)
    chunks = tl.load(count + run)
    dstate = _load_state(dfinal, run, head, column, STATE, HEADS, V, BK, BV, BLOCKS)
    for n in range(chunks):
        own = chunk + chunks - 1 - n
        row = own * C
        _store_state(dborder, dstate, own, head, column, HEADS, V, BK, BV, BLOCKS)
        keys = _load_rows(k, row, head, HEADS, C, BK, BLOCKS)
        doutput = tl.load(_tile(do, row, head, column, HEADS, V, C, BV))
        inside = tl.load(_tile(scores, row, head, 0, HEADS, C, C, C))
        leaving = tl.load(_column(leave, row, head, HEADS, C))
        dupdate = leaving[:, None] * _read(keys, dstate, PRECISION, BLOCKS)
        dupdate = tl.dot(tl.trans(inside), doutput, dupdate, input_precision=PRECISION)
        triangle = tl.load(_tile(inverse, row, head, 0, HEADS, C, C, C))
        written = tl.dot(tl.trans(triangle), dupdate.to(triangle.dtype), input_precision=PRECISION)
        tl.store(_tile(dwritten, row, head, column, HEADS, V, C, BV), written.to(dwritten.dtype.element_ty))

        strength = tl.load(_column(beta, row, head, HEADS, C))
        entering = tl.load(_column(enter, row, head, HEADS, C))
        across = tl.load(enter + (row + C - 1) * HEADS + head)
        queries = _load_rows(q, row, head, HEADS, C, BK, BLOCKS)
        dstate = _write(queries, SCALE * entering[:, None] * doutput, across, dstate, PRECISION, BLOCKS)
        dstate = _write(keys, (-entering * strength)[:, None] * written, 1.0, dstate, PRECISION, BLOCKS)
    if STATE:
        _store_state(dinitial, dstate, run, head, column, HEADS, V, BK, BV, BLOCKS)


@triton.jit
def _no_gradients(
    dq, dk, dv, dg, dbeta, row, head,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """0 for the gradients of an unused chunk."""
    dtype = dq.dtype.element_ty
    for column in range(0, K, BK):
        tl.store(_tile(dq, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
        tl.store(_tile(dk, row, head, column, HEADS, K, C, BK), tl.zeros((C, BK), dtype))
    for column in range(0, V, BV):
        tl.store(_tile(dv, row, head, column, HEADS, V, C, BV), tl.zeros((C, BV), dtype))
    tl.store(_column(dg, row, head, HEADS, C), tl.zeros((C,), tl.float32))
    tl.store(_column(dbeta, row, head, HEADS, C), tl.zeros((C,), tl.float32))


@triton.jit
def gradients_kernel(
    q, k, g, beta, document, inverse, scores, enter, leave, used, border, residual, do, dborder, dwritten,
    dq, dk, dv, dg, dbeta,
    SCALE: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk's rows, once those of the states at its borders are known; grid (chunks, HEADS)."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk * C
    head = tl.program_id(1)
    if chunk >= tl.load(used):
        _no_gradients(dq, dk, dv, dg, dbeta, row, head, HEADS, K, V, C, BK, BV)
        return
    dtype = k.dtype.element_ty
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    strength = tl.load(_column(beta, row, head, HEADS, C))
    triangle = tl.load(_tile(inverse, row, head, 0, HEADS, C, C, C))

    # through the triangles: what a row writes reaches the outputs of later rows, and what they write
    dscores = tl.zeros((C, C), tl.float32)
    dstrict = tl.zeros((C, C), tl.float32)
    dstrength = tl.zeros((C,), tl.float32)
    for column in range(0, V, BV):
        rest = tl.load(_tile(residual, row, head, column, HEADS, V, C, BV)).to(tl.float32)
        update = tl.trans(_update(rest, strength, triangle, PRECISION)).to(dtype)
        doutput = tl.load(_tile(do, row, head, column, HEADS, V, C, BV))
        written = tl.load(_tile(dwritten, row, head, column, HEADS, V, C, BV))
        dscores = tl.dot(doutput, update, dscores, input_precision=PRECISION)
        dstrict = tl.dot(written, update, dstrict, input_precision=PRECISION)
        dstrength += tl.sum(written * rest, axis=1)
        tl.store(_tile(dv, row, head, column, HEADS, V, C, BV), (strength[:, None] * written).to(dtype))

    gram = tl.zeros((C, C), tl.float32)
    for column in range(0, K, BK):
        keys = tl.load(_tile(k, row, head, column, HEADS, K, C, BK))
        gram = tl.dot(keys, tl.trans(keys), gram, input_precision=PRECISION)
    number = tl.zeros((C,), tl.int32)
    if DOCUMENTS:
        number = tl.load(document + row + tl.arange(0, C))
    between = decays_between(tl.load(_column(g, row, head, HEADS, C)), number, DOCUMENTS, C)
    dstrict = tl.where(t > i, -between * dstrict, 0.0)
    tl.store(_column(dbeta, row, head, HEADS, C), dstrength + tl.sum(dstrict * gram, axis=1))
    dstrict = strength[:, None] * dstrict

    # the gate of row j lies on every path from a row i < j to a row t >= j
    inside = tl.load(_tile(scores, row, head, 0, HEADS, C, C, C)).to(tl.float32)
    paths = tl.cumsum(dscores * inside + dstrict * gram, axis=0, reverse=True)
    dgate = tl.sum(tl.where(t > i, paths, 0.0), axis=1)
    dscores = (SCALE * between * dscores).to(dtype)
    dgram = (dstrict + tl.trans(dstrict)).to(dtype)

    # through the states that enter and leave the chunk
    entering = tl.load(_column(enter, row, head, HEADS, C))
    leaving = tl.load(_column(leave, row, head, HEADS, C))
    dentering = tl.zeros((C,), tl.float32)
    dleaving = tl.zeros((C,), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    for begin in range(0, K, BK):
        dqueries = tl.zeros((C, BK), tl.float32)
        dreads = tl.zeros((C, BK), tl.float32)
        dwrites = tl.zeros((C, BK), tl.float32)
        for column in range(0, V, BV):
            state = tl.load(_tile(border, (chunk * HEADS + head) * K + begin, 0, column, 1, V, BK, BV))
            dstate = tl.load(_tile(dborder, (chunk * HEADS + head) * K + begin, 0, column, 1, V, BK, BV))
            dacross += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), axis=1)
            doutput = tl.load(_tile(do, row, head, column, HEADS, V, C, BV))
            dqueries = tl.dot(doutput, tl.trans(state), dqueries, input_precision=PRECISION)
            written = tl.load(_tile(dwritten, row, head, column, HEADS, V, C, BV))
            dvalue = (strength[:, None] * written).to(dtype)
            dreads = tl.dot(dvalue, tl.trans(state), dreads, input_precision=PRECISION)
            rest = tl.load(_tile(residual, row, head, column, HEADS, V, C, BV)).to(tl.float32)
            update = _update(rest, strength, triangle, PRECISION).to(dtype)
            dwrites = tl.dot(update, tl.trans(dstate), dwrites, input_precision=PRECISION)
        dqueries = SCALE * entering[:, None] * dqueries
        dreads = -entering[:, None] * dreads
        dwrites = leaving[:, None] * dwrites
        keys = tl.load(_tile(k, row, head, begin, HEADS, K, C, BK))
        queries = tl.load(_tile(q, row, head, begin, HEADS, K, C, BK))
        dentering += tl.sum(queries * dqueries + keys * dreads, axis=1)
        dleaving += tl.sum(keys * dwrites, axis=1)
        dqueries = tl.dot(dscores, keys, dqueries, input_precision=PRECISION)
        tl.store(_tile(dq, row, head, begin, HEADS, K, C, BK), dqueries.to(dtype))
        dkeys = tl.dot(tl.trans(dscores), queries, dreads + dwrites, input_precision=PRECISION)
        dkeys = tl.dot(dgram, keys, dkeys, input_precision=PRECISION)
        tl.store(_tile(dk, row, head, begin, HEADS, K, C, BK), dkeys.to(dtype))

    # it also lies on the paths from the chunk's start to rows t >= j, from rows i < j to its end, and across it
    dgate += tl.cumsum(dentering, axis=0, reverse=True)
    dgate += tl.sum(tl.where(t > i, dleaving[None, :], 0.0), axis=1)
    across = tl.load(enter + (row + C - 1) * HEADS + head)
    tl.store(_column(dg, row, head, HEADS, C), dgate + across * tl.sum(dacross, axis=0))
