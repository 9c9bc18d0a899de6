"""States in registers, inside a Triton kernel: float32 tuples of blocks [BK, BV], and the rows that meet them.

Triton knows no ``(*blocks, block)``.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from pallas_kernels.gpu.tiles import tile


@triton.jit
def load_state(
    p_x, slot, column,
    STATE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """``x[slot, :, column : column + BV]`` of [.., K, V], a slot being a segment or chunk and a head, int64.

    Zeros without ``STATE``.
    """
    state = ()
    for b in tl.static_range(K // BK):
        block = tl.zeros((BK, BV), tl.float32)
        if STATE:
            block = tl.load(tile(p_x, slot * K + b * BK, 0, column, 1, V, BK, BV))
        state = state + (block,)  # noqa: RUF005
    return state


@triton.jit
def store_state(
    p_x, state, slot, column,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, there=True,
):  # fmt: skip
    """Writes what `load_state` reads, if ``there``."""
    for b in tl.static_range(K // BK):
        p_block = tile(p_x, slot * K + b * BK, 0, column, 1, V, BK, BV)
        tl.store(p_block, state[b].to(p_x.dtype.element_ty), mask=there)


@triton.jit
def load_rows(p_x, row, head, HEADS: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BLOCKS: tl.constexpr):
    """``x[row : row + C, head]`` of [N, HEADS, BLOCKS * BK], as a tuple of [C, BK]."""
    rows = ()
    for b in tl.static_range(BLOCKS):
        rows = rows + (tl.load(tile(p_x, row, head, b * BK, HEADS, BLOCKS * BK, C, BK)),)  # noqa: RUF005
    return rows


@triton.jit
def read(rows, state, PRECISION: tl.constexpr, BLOCKS: tl.constexpr):
    """What a state answers to rows, [C, BV]."""
    answer = tl.dot(rows[0], state[0].to(rows[0].dtype), input_precision=PRECISION)
    for b in tl.static_range(1, BLOCKS):
        answer = tl.dot(rows[b], state[b].to(rows[b].dtype), answer, input_precision=PRECISION)
    return answer


@triton.jit
def write(rows, values, across, state, PRECISION: tl.constexpr, BLOCKS: tl.constexpr):
    """A state that decays by ``across`` and takes ``values`` [C, BV] at the keys ``rows``."""
    written = ()
    for b in tl.static_range(BLOCKS):
        block = tl.dot(tl.trans(rows[b]), values.to(rows[b].dtype), across * state[b], input_precision=PRECISION)
        written = written + (block,)  # noqa: RUF005
    return written


@triton.jit
def decay(state, p_across, at, K: tl.constexpr, BK: tl.constexpr):
    """A state whose channels decay by ``across[at]`` of [.., K]."""
    decayed = ()
    for b in tl.static_range(K // BK):
        decayed = decayed + (state[b] * tl.load(p_across + at * K + b * BK + tl.arange(0, BK))[:, None],)  # noqa: RUF005
    return decayed
