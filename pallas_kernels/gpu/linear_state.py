"""States of packed segments that rows read and write and that decay: Triton kernels of scalar and vector decay.

For each chunk of C rows and each head, with the entering state S [K, V] and values v [C, V]:

    o = scores v + (reads) S;    S' = across * S + (writes)^T v

Scalar and vector decay differ in how scores [C, C], reads and writes [C, K] and across (1 or K numbers) come from
q, k and the gates; what follows from them is here. Scalar decay gives reads and writes as q and k, and one factor
for each row. A program carries a block of the state in registers over the chunks of one segment; everything
that does not depend on the order is computed for all chunks at once. Nothing is added atomically.

The backward pass keeps reads, writes, across, scores and v. It recomputes the states at chunk borders, runs the
gradient of the states backward by the same kernel (``dS = across * dS' + (reads)^T do``), and then computes all
gradients for each chunk from the two.
"""

# Triton's annotations do not describe what its compiler accepts for constexpr.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from typing import NamedTuple

import jax
import triton
import triton.language as tl

from pallas_kernels.arguments import like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import AMD, HOPPER, Config, Entry
from pallas_kernels.gpu.calls import Call
from pallas_kernels.gpu.states import load_state, store_state
from pallas_kernels.gpu.tiles import load_run, per_row, place_of, tile

_FLOAT32 = Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=1), itemsize=4)
_HALF = Entry(Config(block_k=64, block_v=64, num_warps=4, num_stages=2), itemsize=2)
CONFIGS = {
    "outputs": [
        Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=1), itemsize=4),
        Entry(Config(block_k=128, block_v=32, num_warps=8, num_stages=2), ("sm_80",), itemsize=2, size=128),
        Entry(Config(block_k=64, block_v=32, num_warps=8, num_stages=2), ("sm_80",), itemsize=2),
        Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=2), HOPPER, itemsize=2),
        Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
    "borders": [_FLOAT32, _HALF],
    "value_gradient": [_FLOAT32, _HALF],
}


class Rows(NamedTuple):
    """What the rows of all chunks do to the states."""

    reads: jax.Array  # [N, H, K]
    writes: jax.Array  # [N, H, K]
    read_factor: jax.Array | None  # [chunks, H, C] float32, multiplies the rows of reads
    write_factor: jax.Array | None  # the same of writes
    across: jax.Array  # [chunks, H] or [chunks, H, K] float32
    scores: jax.Array  # [chunks, H, C, C] in the dtype of the values, lower triangular


@triton.jit
def outputs_kernel(
    p_reads, p_writes, p_read_factor, p_write_factor, p_across, p_scores, p_v, p_runs, p_initial, p_o, p_final,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    FACTORS: tl.constexpr, VECTOR: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs and the final state of one run, head and block of values; the last run is the unused chunks."""
    number = tl.program_id(0) // (V // BV)  # [segments + 1, HEADS]
    head = number % HEADS
    column = (tl.program_id(0) % (V // BV)) * BV
    segment, chunk, chunks = load_run(p_runs, number // HEADS)
    if number + HEADS >= tl.num_programs(0) // (V // BV):
        for n in range(chunks):
            tl.store(tile(p_o, (chunk + n) * C, head, column, HEADS, V, C, BV), tl.zeros((C, BV), p_o.dtype.element_ty))
        return

    slot = segment.to(tl.int64) * HEADS + head
    state = load_state(p_initial, slot, column, STATE, K, V, BK, BV)
    for n in tl.range(chunks, disable_licm=p_v.dtype.element_ty == tl.float32):
        row = (chunk + n) * C
        at = (chunk + n) * HEADS + head
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV))
        b_scores = tl.load(tile(p_scores, at * C, 0, 0, 1, C, C, C))
        inside = tl.dot(b_scores, b_v, input_precision=PRECISION)
        entered = tl.zeros((C, BV), tl.float32)
        if FACTORS:
            b_v = (b_v * tl.load(per_row(p_write_factor, at * C, 0, 1, C))[:, None]).to(b_v.dtype)
        new = ()
        for b in tl.static_range(K // BK):
            block = state[b]
            b_reads = tl.load(tile(p_reads, row, head, b * BK, HEADS, K, C, BK))
            b_writes = tl.load(tile(p_writes, row, head, b * BK, HEADS, K, C, BK))
            entered = tl.dot(b_reads, tl.cast(state[b], b_reads.dtype), entered, input_precision=PRECISION)
            if VECTOR:
                block *= tl.load(per_row(p_across, at * K + b * BK, 0, 1, BK))[:, None]
            else:
                block *= tl.load(p_across + at)
            new = new + (tl.dot(tl.trans(b_writes), b_v, block, input_precision=PRECISION),)  # noqa: RUF005
        state = new
        if FACTORS:
            entered *= tl.load(per_row(p_read_factor, at * C, 0, 1, C))[:, None]
        tl.store(tile(p_o, row, head, column, HEADS, V, C, BV), (inside + entered).to(p_o.dtype.element_ty))
    if STATE:
        store_state(p_final, state, slot, column, K, V, BK, BV)


@triton.jit
def borders_kernel(
    p_rows, p_factor, p_across, p_v, p_runs, p_initial, p_borders, p_final,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    FACTORS: tl.constexpr, VECTOR: tl.constexpr, STATE: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """States before each chunk of one run and head, a block of keys and values, from its end if ``REVERSE``.

    0 in unused chunks, which are the last run.
    """
    blocks: tl.constexpr = (K // BK) * (V // BV)
    block = tl.program_id(0) % blocks
    number = tl.program_id(0) // blocks  # [segments + 1, HEADS]
    head = number % HEADS
    key = (block // (V // BV)) * BK
    column = (block % (V // BV)) * BV
    segment, chunk, chunks = load_run(p_runs, number // HEADS)
    state = tl.zeros((BK, BV), tl.float32)
    if number + HEADS >= tl.num_programs(0) // blocks:
        for n in range(chunks):
            p_block = tile(p_borders, ((chunk + n) * HEADS + head) * K + key, 0, column, 1, V, BK, BV)
            tl.store(p_block, state.to(p_borders.dtype.element_ty))
        return

    slot = segment.to(tl.int64) * HEADS + head
    if STATE:
        state = tl.load(tile(p_initial, slot * K + key, 0, column, 1, V, BK, BV))
    for n in range(chunks):
        current = chunk + n
        if REVERSE:
            current = chunk + chunks - 1 - n
        row = current * C
        at = current * HEADS + head
        tl.store(tile(p_borders, at * K + key, 0, column, 1, V, BK, BV), state.to(p_borders.dtype.element_ty))
        b_rows = tl.load(tile(p_rows, row, head, key, HEADS, K, C, BK))
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV))
        if FACTORS:
            b_v = (b_v * tl.load(per_row(p_factor, at * C, 0, 1, C))[:, None]).to(b_v.dtype)
        if VECTOR:
            state *= tl.load(per_row(p_across, at * K + key, 0, 1, BK))[:, None]
        else:
            state *= tl.load(p_across + at)
        state = tl.dot(tl.trans(b_rows), b_v, state, input_precision=PRECISION)
    if FINAL:
        tl.store(tile(p_final, slot * K + key, 0, column, 1, V, BK, BV), state)


@triton.jit
def value_gradient_kernel(
    p_scores, p_writes, p_factor, p_leaving, p_do, p_dv,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    FACTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dv = scores^T do + (writes) dS'`` of one chunk and head, a block of values."""
    row, head, at = place_of(tl.program_id(0) // (V // BV), HEADS, C)
    column = (tl.program_id(0) % (V // BV)) * BV
    dv = tl.zeros((C, BV), tl.float32)
    for key in range(0, K, BK):
        b_writes = tl.load(tile(p_writes, row, head, key, HEADS, K, C, BK))
        b_leaving = tl.load(tile(p_leaving, at * K + key, 0, column, 1, V, BK, BV))
        dv = tl.dot(b_writes, b_leaving, dv, input_precision=PRECISION)
    if FACTORS:
        dv *= tl.load(per_row(p_factor, at * C, 0, 1, C))[:, None]
    b_scores = tl.load(tile(p_scores, at * C, 0, 0, 1, C, C, C))
    b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
    dv = tl.dot(tl.trans(b_scores), b_do, dv, input_precision=PRECISION)
    tl.store(tile(p_dv, row, head, column, HEADS, V, C, BV), dv.to(p_dv.dtype.element_ty))


@triton.jit
def row_gradients(
    p_v, p_do, p_borders, p_leaving, row, head, at, key,
    HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of scores [C, C], of reads and writes without their factors [C, BK] and of across [BK].

    ``row`` and ``head`` are the chunk's, ``at`` numbers both, and ``key`` is the first of BK key channels.
    """
    dscores = tl.zeros((C, C), tl.float32)
    dreads = tl.zeros((C, BK), tl.float32)
    dwrites = tl.zeros((C, BK), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    for column in range(0, V, BV):
        b_v = tl.load(tile(p_v, row, head, column, HEADS, V, C, BV))
        b_do = tl.load(tile(p_do, row, head, column, HEADS, V, C, BV))
        b_border = tl.load(tile(p_borders, at * K + key, 0, column, 1, V, BK, BV))
        b_leaving = tl.load(tile(p_leaving, at * K + key, 0, column, 1, V, BK, BV))
        dscores = tl.dot(b_do, tl.trans(b_v), dscores, input_precision=PRECISION)
        dreads = tl.dot(b_do, tl.trans(b_border), dreads, input_precision=PRECISION)
        dwrites = tl.dot(b_v, tl.trans(b_leaving), dwrites, input_precision=PRECISION)
        dacross += tl.sum(b_border.to(tl.float32) * b_leaving.to(tl.float32), axis=1)
    return dscores, dreads, dwrites, dacross


def outputs(
    rows: Rows, v: jax.Array, chunks: Chunks, initial_state: jax.Array | None, call: Call
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [N, H, V] in the values' dtype, and final states, None without initial ones."""
    config, runs = call.config(CONFIGS, "outputs"), chunks.runs
    o, final = call.run(
        outputs_kernel, config, *rows, v, runs, initial_state,
        grid={"blocks": runs.shape[0] * call.heads * (call.values // config.block_v)},
        outputs=[like(v), like(initial_state)],
        flops=2 * v.size * (2 * call.keys + call.rows),
        FACTORS=rows.read_factor is not None, VECTOR=rows.across.ndim == 3, STATE=initial_state is not None,
    )  # fmt: skip
    return o, final


def _borders(rows, factor, across, v, chunks, initial_state, call, *, reverse):
    """States before each chunk [chunks, H, K, V] in the values' dtype; in ``reverse`` also those at the other end."""
    config, runs = call.config(CONFIGS, "borders"), chunks.runs
    blocks = (call.keys // config.block_k) * (call.values // config.block_v)
    states = jax.ShapeDtypeStruct((call.chunks, call.heads, call.keys, call.values), v.dtype)
    final = like(initial_state) if reverse else None
    return call.run(
        borders_kernel, config, rows, factor, across, v, runs, initial_state,
        grid={"blocks": runs.shape[0] * call.heads * blocks},
        outputs=[states, final],
        flops=2 * v.size * call.keys,
        FACTORS=factor is not None, VECTOR=across.ndim == 3, STATE=initial_state is not None,
        FINAL=final is not None, REVERSE=reverse,
    )  # fmt: skip


class Borders(NamedTuple):
    """States before and gradients of the states after each chunk, [chunks, H, K, V]; gradients of initial states."""

    states: jax.Array
    leaving: jax.Array
    dinitial: jax.Array | None


def both_borders(
    rows: Rows,
    v: jax.Array,
    do: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    dfinal: jax.Array | None,
    call: Call,
) -> Borders:
    """What the gradients of each chunk need of the other chunks."""
    states, _ = _borders(rows.writes, rows.write_factor, rows.across, v, chunks, initial_state, call, reverse=False)
    leaving, dinitial = _borders(rows.reads, rows.read_factor, rows.across, do, chunks, dfinal, call, reverse=True)
    return Borders(states, leaving, dinitial)


def value_gradient(rows: Rows, v: jax.Array, do: jax.Array, leaving: jax.Array, call: Call) -> jax.Array:
    """The gradient of v, in its dtype."""
    config = call.config(CONFIGS, "value_gradient")
    return call.run(
        value_gradient_kernel, config, rows.scores, rows.writes, rows.write_factor, leaving, do,
        grid={"blocks": call.chunks * call.heads * (call.values // config.block_v)},
        outputs=[like(v)],
        flops=2 * v.size * (call.keys + call.rows),
        FACTORS=rows.write_factor is not None,
    )[0]  # fmt: skip
