"""Linear attention with one decay for each key channel, over packed rows, as Triton kernels.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

GLA (arXiv 2312.06635, section 4.1) and HGRN2 (arXiv 2404.07904). With a bonus u a token reads the state before it
and weighs itself, ``o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t``: RWKV6 (arXiv 2404.05892, section 4.2).

Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. The states are those of
`pallas_kernels.gpu.linear_state`. Scores between the rows of a chunk come from cuts: the chunk is halved again and
again, and a pair of rows i < t is parted by exactly one of these cuts. Both factors of its decay, from i to the cut
and from the cut to t, are at most 1, so that gates of any strength neither overflow nor lose what counts. One
matrix product with a mask sums the gates between each row and its cut, and nothing else.
"""

import functools

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.arguments import FLOAT32, Expected
from pallas_kernels.chunks import Chunks
from pallas_kernels.gpu.launch import Tuning, float32_precision, launch
from pallas_kernels.gpu.linear_state import (
    Borders,
    Rows,
    both_borders,
    check_rows,
    outputs,
    row_gradients,
    sizes_of,
    value_gradient,
)

# By generation, then bytes of an element: blocks of the preparation and of the gradients.
TUNING = {
    "sm_80": {2: (Tuning(16, 64, 8, 1), Tuning(16, 32, 8, 1)), 4: (Tuning(16, 64, 8, 1), Tuning(16, 16, 8, 1))},
    "sm_90": {2: (Tuning(32, 64, 8, 1), Tuning(16, 32, 8, 1)), 4: (Tuning(16, 64, 8, 1), Tuning(16, 16, 8, 1))},
    "sm_100": {2: (Tuning(32, 64, 8, 1), Tuning(16, 32, 8, 1)), 4: (Tuning(16, 64, 8, 1), Tuning(16, 16, 8, 1))},
    "gfx942": {2: (Tuning(32, 64, 4, 1), Tuning(32, 64, 4, 1)), 4: (Tuning(16, 64, 4, 1), Tuning(16, 16, 4, 1))},
}


@triton.jit
def between(first, end, C: tl.constexpr):
    """Numbers from ``first`` to before ``end``, both [C], in 0 to C - 1: [C, C].

    Every mask is made of bounds for its rows: comparisons of row and column would be kept in registers.
    """
    column = tl.arange(0, C)[None, :]
    return (column >= first[:, None]) & (column < end[:, None])


@triton.jit
def to_cut(cut, C: tl.constexpr):
    """Which gates lie between each row and its cut, in halves of ``2 ** cut`` rows: [C, C], row, gate.

    A row of the second half is reached from the cut before its gate applies, a row of the first half reaches it
    behind its gate.
    """
    row = tl.arange(0, C)
    half = row >> cut
    second = (half & 1) == 1
    return between(tl.where(second, half << cut, row + 1), tl.where(second, row, (half + 1) << cut), C)


@triton.jit
def from_cut(cut, C: tl.constexpr):
    """The same transposed: [C, C], gate, row."""
    gate = tl.arange(0, C)
    half = gate >> cut
    second = (half & 1) == 1
    return between(tl.where(second, gate + 1, half << cut), tl.where(second, (half + 1) << cut, gate), C)


@triton.jit
def parted(cut, C: tl.constexpr):
    """Pairs of a later and an earlier row that the cuts between halves of ``2 ** cut`` rows part: [C, C]."""
    half = tl.arange(0, C) >> cut
    return between((half - 1) << cut, (half & -(half & 1)) << cut, C)


@triton.jit
def masked_sums(mask, x, PRECISION: tl.constexpr):
    """Sums over the rows of float32 ``x`` [C, BK] that ``mask`` [C, C] names, by matrix products.

    Without products of float32, three of bfloat16 parts give all 24 bits; ``mask`` is exact in any dtype.
    """
    if PRECISION == "ieee":
        return tl.dot(tl.where(mask, 1.0, 0.0), x, input_precision="ieee")
    ones = tl.where(mask, 1.0, 0.0).to(tl.bfloat16)
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(ones, high, tl.dot(ones, middle, tl.dot(ones, low)))


@triton.jit
def border_decays(gate, number, cuts, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr, C: tl.constexpr):
    """Decays from the chunk's start to just before each row, from behind it to the end, [C, BK], and across [BK]."""
    enter = tl.exp(masked_sums(from_cut(cuts, C), gate, PRECISION))  # the whole chunk is a first half
    leave = tl.exp(masked_sums(to_cut(cuts, C), gate, PRECISION))
    across = tl.exp(tl.sum(gate, axis=0))
    if DOCUMENTS:
        last = tl.max(number, axis=0)
        enter = tl.where((number == 0)[:, None], enter, 0.0)
        leave = tl.where((number == last)[:, None], leave, 0.0)
        across = tl.where(last == 0, across, 0.0)
    return enter, leave, across


@triton.jit
def prepare_kernel(
    q, k, g, bonus, document, scores, reads, writes, across, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BONUS: tl.constexpr, DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of one chunk and head, what its rows read and write at its borders, and the decay across it."""
    at = tl.program_id(0).to(tl.int64)
    head = at % HEADS
    first = (at // HEADS) * C * HEADS + head
    row = tl.arange(0, C)
    number = row
    if DOCUMENTS:
        number = tl.load(document + (at // HEADS) * C + row)
    total = tl.zeros((C, C), tl.float32)
    own = tl.zeros((C,), tl.float32)
    for begin in range(0, KEYS, BK):
        key = begin + tl.arange(0, BK)
        here = first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :]
        left = SCALE * tl.load(q + here).to(tl.float32)
        right = tl.load(k + here).to(tl.float32)
        gate = tl.load(g + here)
        if BONUS:
            own += tl.sum(left * right * tl.load(bonus + head * KEYS + key)[None, :], axis=1)
        else:
            own += tl.sum(left * right, axis=1)
            left *= tl.exp(gate)
        enter, leave, whole = border_decays(gate, number, cuts, DOCUMENTS, PRECISION, C)
        tl.store(reads + here, (left * enter).to(reads.dtype.element_ty))
        tl.store(writes + here, (right * leave).to(writes.dtype.element_ty))
        tl.store(across + at * KEYS + key, whole)
        for cut in range(cuts):  # a bound that is no constant keeps the loop a loop, in fewer registers
            decay = tl.exp(masked_sums(to_cut(cut, C), gate, PRECISION))
            since, until = (left * decay).to(reads.dtype.element_ty), (right * decay).to(reads.dtype.element_ty)
            products = tl.dot(since, tl.trans(until), input_precision=PRECISION)
            total += tl.where(parted(cut, C), products, 0.0)
    if DOCUMENTS:
        total = tl.where(number[:, None] == number[None, :], total, 0.0)
    total += tl.where(row[:, None] == row[None, :], own[:, None], 0.0)
    tl.store(scores + at * C * C + row[:, None] * C + row[None, :], total.to(scores.dtype.element_ty))


@triton.jit
def gradients_kernel(
    q, k, v, do, g, bonus, document, borders, leaving, dq, dk, dg, dbonus, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BONUS: tl.constexpr, DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and head, a block of keys; that of the bonus is a part to be summed over chunks."""
    at = (tl.program_id(0) // (KEYS // BK)).to(tl.int64)
    head = at % HEADS
    first = (at // HEADS) * C * HEADS + head
    row = tl.arange(0, C)
    key = (tl.program_id(0) % (KEYS // BK)) * BK + tl.arange(0, BK)
    dscores, dreads, dwrites, dacross = row_gradients(
        v, do, borders, leaving, at, key, HEADS, KEYS, VALUES, C, BK, BV, PRECISION
    )
    number = row
    down = tl.expand_dims(tl.sum(tl.where(row[:, None] == row[None, :], dscores, 0.0), axis=1), 1)
    if DOCUMENTS:
        number = tl.load(document + (at // HEADS) * C + row)
        dscores = tl.where(number[:, None] == number[None, :], dscores, 0.0)
    here = first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :]
    left = SCALE * tl.load(q + here).to(tl.float32)
    right = tl.load(k + here).to(tl.float32)
    gate = tl.load(g + here)
    weight = down
    if BONUS:
        weight = down * tl.load(bonus + head * KEYS + key)[None, :]
        tl.store(dbonus + at * KEYS + key, tl.sum(down * left * right, axis=0))
        decayed = left
    else:
        decayed = left * tl.exp(gate)

    enter, leave, whole = border_decays(gate, number, cuts, DOCUMENTS, PRECISION, C)
    dreads *= enter
    dwrites *= leave
    dgate = (whole * dacross)[None, :] + masked_sums(to_cut(cuts, C), decayed * dreads, PRECISION)
    dgate += masked_sums(from_cut(cuts, C), right * dwrites, PRECISION)
    for cut in range(cuts):  # a bound that is no constant keeps the loop a loop, in fewer registers
        decay = tl.exp(masked_sums(to_cut(cut, C), gate, PRECISION))
        since, until = (decayed * decay).to(q.dtype.element_ty), (right * decay).to(q.dtype.element_ty)
        dproducts = tl.where(parted(cut, C), dscores, 0.0).to(q.dtype.element_ty)
        dsince = decay * tl.dot(dproducts, until, input_precision=PRECISION)
        duntil = decay * tl.dot(tl.trans(dproducts), since, input_precision=PRECISION)
        dreads += dsince
        dwrites += duntil
        dgate += masked_sums(from_cut(cut, C), decayed * dsince + right * duntil, PRECISION)

    if BONUS:
        dleft = dreads
    else:
        dleft = tl.exp(gate) * dreads
        dgate += decayed * dreads
    tl.store(dq + here, (SCALE * (dleft + weight * right)).to(dq.dtype.element_ty))
    tl.store(dk + here, (dwrites + weight * left).to(dk.dtype.element_ty))
    tl.store(dg + here, dgate)


def vector_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    bonus: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Linear attention with a decay for each key channel, over packed rows (module docstring).

    The backward pass keeps the inputs, two more rows of K channels, and the scores.

    Args:
        q, k: [N, H, K] float32, bfloat16 or float16, K one of 16, 32, 64, 128 and 256; k or v is 0 on padding rows.
        v: [N, H, V] of the same dtype, V one of these and 512.
        g: [N, H, K] log decay, at most 0, and 0 on padding rows.
        bonus: [H, K] weight of the token itself, which then reads the state before it, or None.
        chunks: segments and documents of the rows, in chunks of 16, 32 or 64 rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        device: the generation to compile for, a row of `TUNING`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 states [S, H, K, V] after each segment's last row (an
        empty segment keeps its initial one), or None. In half precision the products round their operands, states
        and decayed rows included, to it.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    others: dict[str, Expected] = {"g": (g, q.shape, FLOAT32)}
    if bonus is not None:
        others["bonus"] = (bonus, q.shape[1:], FLOAT32)
    check_rows(q, k, v, chunks, initial_state, others, device)
    return _vector_decay(q, k, v, g, bonus, chunks, initial_state, float(scale), device, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _vector_decay(q, k, v, g, bonus, chunks, initial_state, scale, device, interpret):
    return _forward(q, k, v, g, bonus, chunks, initial_state, scale, device, interpret)[0]


def _forward(q, k, v, g, bonus, chunks, initial_state, scale, device, interpret):
    rows = _prepare(q, k, v, g, bonus, chunks, scale, device, interpret)
    o, final = outputs(rows, v, chunks, initial_state, device=device, interpret=interpret)
    return (o, final), (q, k, v, g, bonus, rows, chunks, initial_state)


def _backward(scale, device, interpret, residuals, cotangents):
    q, k, v, g, bonus, rows, chunks, initial_state = residuals
    do, dfinal = cotangents
    options = {"device": device, "interpret": interpret}
    states = both_borders(rows, v, do, chunks, initial_state, dfinal, **options)
    dq, dk, dg, dbonus = _gradients(q, k, v, do, g, bonus, states, chunks, scale, **options)
    dv = value_gradient(rows, v, do, states.leaving, chunks, **options)
    return dq, dk, dv, dg, dbonus, None, states.dinitial


_vector_decay.defvjp(_forward, _backward)


def _options(bonus, chunks: Chunks, rows: int, scale: float) -> dict[str, int | float | bool]:
    """Constants of both kernels."""
    return {
        "SCALE": scale,
        "cuts": rows.bit_length() - 1,
        "BONUS": bonus is not None,
        "DOCUMENTS": chunks.document is not None,
    }


def _prepare(q, k, v, g, bonus, chunks, scale, device, interpret) -> Rows:
    sizes = sizes_of(k, v, chunks)
    scores, reads, writes, across = launch(
        prepare_kernel,
        q,
        k,
        g,
        g if bonus is None else bonus,
        g if chunks.document is None else chunks.document,
        grid=(sizes.chunks * sizes.heads,),
        outputs=[
            jax.ShapeDtypeStruct((sizes.chunks, sizes.heads, sizes.rows, sizes.rows), v.dtype),
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct((sizes.chunks, sizes.heads, sizes.keys), jnp.float32),
        ],
        interpret=interpret,
        device=device,
        flops=4 * k.size * sizes.rows * sizes.rows.bit_length(),
        PRECISION=float32_precision(device, interpret),
        **_options(bonus, chunks, sizes.rows, scale),
        **sizes.constants(TUNING[device][v.dtype.itemsize][0]),
    )
    return Rows(reads, writes, None, None, across, scores)


def _gradients(q, k, v, do, g, bonus, states: Borders, chunks, scale, device, interpret):
    sizes = sizes_of(k, v, chunks)
    constants = sizes.constants(TUNING[device][v.dtype.itemsize][1])
    parts = sizes.keys // constants["BK"]
    shape = (1,) if bonus is None else (sizes.chunks, sizes.heads, sizes.keys)
    dq, dk, dg, dbonus = launch(
        gradients_kernel,
        q,
        k,
        v,
        do,
        g,
        g if bonus is None else bonus,
        g if chunks.document is None else chunks.document,
        states.states,
        states.leaving,
        grid=(sizes.chunks * sizes.heads * parts,),
        outputs=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(g.shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ],
        interpret=interpret,
        device=device,
        flops=2 * v.size * (2 * sizes.keys + sizes.rows * parts) + 8 * k.size * sizes.rows * sizes.rows.bit_length(),
        PRECISION=float32_precision(device, interpret),
        **_options(bonus, chunks, sizes.rows, scale),
        **constants,
    )
    return dq, dk, dg, None if bonus is None else dbonus.sum(0)
