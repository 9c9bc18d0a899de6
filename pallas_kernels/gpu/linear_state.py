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

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.arguments import GPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.gpu.launch import Tuning, float32_precision, for_device, launch


class Kernels(NamedTuple):
    """Blocks of each kernel."""

    outputs: Tuning
    borders: Tuning
    value_gradient: Tuning


_HALF = Kernels(Tuning(64, 32, 4, 2), Tuning(64, 64, 4, 2), Tuning(64, 64, 4, 2))
_FULL = Kernels(Tuning(64, 16, 4, 1), Tuning(64, 32, 4, 1), Tuning(64, 32, 4, 1))
# By generation, then bytes of an element.
TUNING = {
    "sm_80": {2: _HALF._replace(outputs=Tuning(64, 32, 8, 2)), 4: _FULL},
    "sm_90": {2: _HALF, 4: _FULL},
    "sm_100": {2: _HALF, 4: _FULL},
    "gfx942": {2: _HALF._replace(outputs=Tuning(64, 32, 4, 1)), 4: _FULL},
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
def zero_blocks(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``COUNT`` float32 blocks of zeros."""
    blocks = ()
    for _ in tl.static_range(COUNT):  # pyright: ignore[reportGeneralTypeIssues]
        blocks = blocks + (tl.zeros((ROWS, COLUMNS), tl.float32),)  # noqa: RUF005
    return blocks


@triton.jit
def outputs_kernel(
    reads, writes, read_factor, write_factor, across, scores, v, start, initial, o, final,
    HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, FACTORS: tl.constexpr, VECTOR: tl.constexpr, STATES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs and the final state of one segment, head and block of values."""
    slot = (tl.program_id(0) // (VALUES // BV)).to(tl.int64)  # [segments + 1, H]
    head, segment = slot % HEADS, slot // HEADS
    row = tl.arange(0, C)
    key = tl.arange(0, BK)
    column = (tl.program_id(0) % (VALUES // BV)) * BV + tl.arange(0, BV)
    place = slot * KEYS * VALUES + key[:, None] * VALUES + column[None, :]
    slots = (tl.num_programs(0) // (VALUES // BV) - HEADS).to(tl.int64)  # the last segment is the unused chunks
    real = place < slots * KEYS * VALUES
    states = zero_blocks(KEYS // BK, BK, BV)
    if STATES:
        loaded = ()
        for b in tl.static_range(KEYS // BK):  # pyright: ignore[reportGeneralTypeIssues]
            loaded = loaded + (tl.load(initial + place + b * BK * VALUES, mask=real, other=0.0),)  # noqa: RUF005
        states = loaded
    begin = tl.load(start + segment).to(tl.int64)
    for i in range((tl.load(start + segment + 1) - begin).to(tl.int32)):
        at = (begin + i) * HEADS + head
        first = (begin + i) * C * HEADS + head
        rows = first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :]
        here = first * VALUES + row[:, None] * (HEADS * VALUES) + column[None, :]
        value = tl.load(v + here)
        score = tl.load(scores + at * C * C + row[:, None] * C + row[None, :])
        inside = tl.dot(score, value, input_precision=PRECISION)
        entered = tl.zeros((C, BV), tl.float32)
        if FACTORS:
            value = (value * tl.load(write_factor + at * C + row)[:, None]).to(value.dtype)
        new = ()
        for b in tl.static_range(KEYS // BK):  # pyright: ignore[reportGeneralTypeIssues]
            state = states[b]
            read = tl.load(reads + rows + b * BK)
            write = tl.load(writes + rows + b * BK)
            entered = tl.dot(read, tl.cast(states[b], read.dtype), entered, input_precision=PRECISION)
            if VECTOR:
                state *= tl.load(across + at * KEYS + b * BK + key)[:, None]
            else:
                state *= tl.load(across + at)
            new = new + (tl.dot(tl.trans(write), value, state, input_precision=PRECISION),)  # noqa: RUF005
        states = new
        if FACTORS:
            entered *= tl.load(read_factor + at * C + row)[:, None]
        tl.store(o + here, (inside + entered).to(o.dtype.element_ty))
    if STATES:
        for b in tl.static_range(KEYS // BK):  # pyright: ignore[reportGeneralTypeIssues]
            tl.store(final + place + b * BK * VALUES, states[b], mask=real)


@triton.jit
def borders_kernel(
    rows, factor, across, v, start, initial, borders, final,
    HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, FACTORS: tl.constexpr, VECTOR: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """States before each chunk of one segment and head, a block of keys and values, from its end if ``REVERSE``."""
    blocks: tl.constexpr = (KEYS // BK) * (VALUES // BV)
    block = tl.program_id(0) % blocks
    slot = (tl.program_id(0) // blocks).to(tl.int64)
    head, segment = slot % HEADS, slot // HEADS
    row = tl.arange(0, C)
    key = (block // (VALUES // BV)) * BK + tl.arange(0, BK)
    column = (block % (VALUES // BV)) * BV + tl.arange(0, BV)
    place = key[:, None] * VALUES + column[None, :]
    slots = (tl.num_programs(0) // blocks - HEADS).to(tl.int64)
    real = slot * KEYS * VALUES + place < slots * KEYS * VALUES
    state = tl.zeros((BK, BV), tl.float32)
    if INITIAL:
        state = tl.load(initial + slot * KEYS * VALUES + place, mask=real, other=0.0)
    begin = tl.load(start + segment).to(tl.int64)
    end = tl.load(start + segment + 1).to(tl.int64)
    for i in range((end - begin).to(tl.int32)):
        chunk = begin + i
        if REVERSE:
            chunk = end - 1 - i
        at = chunk * HEADS + head
        first = chunk * C * HEADS + head
        tl.store(borders + at * KEYS * VALUES + place, state.to(borders.dtype.element_ty))
        write = tl.load(rows + first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :])
        value = tl.load(v + first * VALUES + row[:, None] * (HEADS * VALUES) + column[None, :])
        if FACTORS:
            value = (value * tl.load(factor + at * C + row)[:, None]).to(value.dtype)
        if VECTOR:
            state *= tl.load(across + at * KEYS + key)[:, None]
        else:
            state *= tl.load(across + at)
        state = tl.dot(tl.trans(write), value, state, input_precision=PRECISION)
    if FINAL:
        tl.store(final + slot * KEYS * VALUES + place, state, mask=real)


@triton.jit
def value_gradient_kernel(
    scores, writes, factor, leaving, do, dv,
    HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dv = scores^T do + (writes) dS'`` of one chunk and head, a block of values."""
    at = (tl.program_id(0) // (VALUES // BV)).to(tl.int64)
    first = (at // HEADS) * C * HEADS + at % HEADS
    row = tl.arange(0, C)
    key = tl.arange(0, BK)
    column = (tl.program_id(0) % (VALUES // BV)) * BV + tl.arange(0, BV)
    here = first * VALUES + row[:, None] * (HEADS * VALUES) + column[None, :]
    total = tl.zeros((C, BV), tl.float32)
    for begin in range(0, KEYS, BK):
        write = tl.load(writes + first * KEYS + row[:, None] * (HEADS * KEYS) + begin + key[None, :])
        state = tl.load(leaving + at * KEYS * VALUES + (begin + key)[:, None] * VALUES + column[None, :])
        total = tl.dot(write, state, total, input_precision=PRECISION)
    if FACTORS:
        total *= tl.load(factor + at * C + row)[:, None]
    score = tl.load(scores + at * C * C + row[None, :] * C + row[:, None])
    total = tl.dot(score, tl.load(do + here), total, input_precision=PRECISION)
    tl.store(dv + here, total.to(dv.dtype.element_ty))


@triton.jit
def row_gradients(
    v, do, borders, leaving, at, key,
    HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of scores [C, C], of reads and writes without their factors [C, BK] and of across [BK].

    ``at`` numbers the chunk and head, ``key`` [BK] the key channels.
    """
    first = (at // HEADS) * C * HEADS + at % HEADS
    row = tl.arange(0, C)
    dscores = tl.zeros((C, C), tl.float32)
    dreads = tl.zeros((C, BK), tl.float32)
    dwrites = tl.zeros((C, BK), tl.float32)
    dacross = tl.zeros((BK,), tl.float32)
    for begin in range(0, VALUES, BV):
        column = begin + tl.arange(0, BV)
        here = first * VALUES + row[:, None] * (HEADS * VALUES) + column[None, :]
        place = at * KEYS * VALUES + key[:, None] * VALUES + column[None, :]
        value, dout = tl.load(v + here), tl.load(do + here)
        state, dstate = tl.load(borders + place), tl.load(leaving + place)
        dscores = tl.dot(dout, tl.trans(value), dscores, input_precision=PRECISION)
        dreads = tl.dot(dout, tl.trans(state), dreads, input_precision=PRECISION)
        dwrites = tl.dot(value, tl.trans(dstate), dwrites, input_precision=PRECISION)
        dacross += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), axis=1)
    return dscores, dreads, dwrites, dacross


def segment_starts(chunks: Chunks, initial_state: jax.Array | None) -> jax.Array:
    """First chunk of each segment, of the unused chunks behind them, and the end: int32 [S + 2].

    Without states nothing tells how many segments there are; then those with rows are numbered anew, and there
    are at most as many as chunks.
    """
    if initial_state is not None:
        segment, count = chunks.segment, initial_state.shape[0]
    else:
        begins = (chunks.first | jnp.roll(chunks.last, 1)).at[0].set(True)
        segment, count = jnp.cumsum(begins, dtype=jnp.int32) - 1, begins.shape[0]
    return jnp.searchsorted(segment, jnp.arange(count + 2, dtype=jnp.int32), side="left").astype(jnp.int32)


class Sizes(NamedTuple):
    """Sizes of a call."""

    chunks: int
    heads: int
    keys: int
    values: int
    rows: int  # of a chunk

    def constants(self, blocks: Tuning) -> dict[str, int]:
        """Constants of a kernel with ``blocks``, and its launch parameters."""
        return {
            "HEADS": self.heads,
            "KEYS": self.keys,
            "VALUES": self.values,
            "C": self.rows,
            "BK": min(blocks.keys, self.keys),
            "BV": min(blocks.values, self.values),
            "num_warps": blocks.num_warps,
            "num_stages": blocks.num_stages,
        }


def sizes_of(k: jax.Array, v: jax.Array, chunks: Chunks) -> Sizes:
    """Sizes of rows in chunks."""
    count = chunks.segment.shape[0]
    return Sizes(count, k.shape[1], k.shape[2], v.shape[2], k.shape[0] // count)


def _or(x: jax.Array | None, instead: jax.Array) -> jax.Array:
    """Something to point to where an argument is not read."""
    return instead if x is None else x


def outputs(
    rows: Rows, v: jax.Array, chunks: Chunks, initial_state: jax.Array | None, *, device: str, interpret: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [N, H, V] in the values' dtype, and final states, None without initial ones."""
    sizes = sizes_of(rows.reads, v, chunks)
    constants = sizes.constants(TUNING[device][v.dtype.itemsize].outputs)
    start = segment_starts(chunks, initial_state)
    final = jax.ShapeDtypeStruct((1,) if initial_state is None else initial_state.shape, jnp.float32)
    o, last = launch(
        outputs_kernel,
        rows.reads,
        rows.writes,
        _or(rows.read_factor, start),
        _or(rows.write_factor, start),
        rows.across,
        rows.scores,
        v,
        start,
        _or(initial_state, start),
        grid=((start.shape[0] - 1) * sizes.heads * (sizes.values // constants["BV"]),),
        outputs=[jax.ShapeDtypeStruct(v.shape, v.dtype), final],
        interpret=interpret,
        device=device,
        flops=2 * v.size * (2 * sizes.keys + sizes.rows),
        FACTORS=rows.read_factor is not None,
        VECTOR=rows.across.ndim == 3,
        STATES=initial_state is not None,
        PRECISION=float32_precision(device, interpret),
        **constants,
    )
    return o, None if initial_state is None else last


def borders(
    rows: jax.Array,
    factor: jax.Array | None,
    across: jax.Array,
    v: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    *,
    reverse: bool,
    device: str,
    interpret: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """States before each chunk [chunks, H, K, V] in the values' dtype; in ``reverse`` also those at the other end."""
    sizes = sizes_of(rows, v, chunks)
    constants = sizes.constants(TUNING[device][v.dtype.itemsize].borders)
    start = segment_starts(chunks, initial_state)
    blocks = (sizes.keys // constants["BK"]) * (sizes.values // constants["BV"])
    store = reverse and initial_state is not None
    shape = sizes.chunks, sizes.heads, sizes.keys, sizes.values
    states, final = launch(
        borders_kernel,
        rows,
        _or(factor, start),
        across,
        v,
        start,
        _or(initial_state, start),
        grid=((start.shape[0] - 1) * sizes.heads * blocks,),
        outputs=[
            jax.ShapeDtypeStruct(shape, v.dtype),
            jax.ShapeDtypeStruct((1,) if initial_state is None or not store else initial_state.shape, jnp.float32),
        ],
        interpret=interpret,
        device=device,
        flops=2 * v.size * sizes.keys,
        FACTORS=factor is not None,
        VECTOR=across.ndim == 3,
        INITIAL=initial_state is not None,
        FINAL=store,
        REVERSE=reverse,
        PRECISION=float32_precision(device, interpret),
        **constants,
    )
    return states, final if store else None


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
    *,
    device: str,
    interpret: bool,
) -> Borders:
    """What the gradients of each chunk need of the other chunks."""
    options = {"device": device, "interpret": interpret}
    states, _ = borders(
        rows.writes, rows.write_factor, rows.across, v, chunks, initial_state, reverse=False, **options
    )
    leaving, dinitial = borders(
        rows.reads, rows.read_factor, rows.across, do, chunks, dfinal, reverse=True, **options
    )
    return Borders(states, leaving, dinitial)


def value_gradient(
    rows: Rows, v: jax.Array, do: jax.Array, leaving: jax.Array, chunks: Chunks, *, device: str, interpret: bool
) -> jax.Array:
    """The gradient of v, in its dtype."""
    sizes = sizes_of(rows.writes, v, chunks)
    constants = sizes.constants(TUNING[device][v.dtype.itemsize].value_gradient)
    return launch(
        value_gradient_kernel,
        rows.scores,
        rows.writes,
        _or(rows.write_factor, rows.scores),
        leaving,
        do,
        grid=(sizes.chunks * sizes.heads * (sizes.values // constants["BV"]),),
        outputs=[jax.ShapeDtypeStruct(v.shape, v.dtype)],
        interpret=interpret,
        device=device,
        flops=2 * v.size * (sizes.keys + sizes.rows),
        FACTORS=rows.write_factor is not None,
        PRECISION=float32_precision(device, interpret),
        **constants,
    )[0]


def check_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    others: Mapping[str, Expected],
    device: str,
) -> None:
    """`pallas_kernels.arguments.check` of rows that all have one dtype, and whether the device has kernels."""
    rows = (q.dtype.name,)
    alike = {"k": (k, q.shape, rows), "v": (v, (*q.shape[:2], v.shape[-1]), rows)}
    check(GPU, q, v, chunks, initial_state, alike | dict(others))
    for_device(TUNING, device)
