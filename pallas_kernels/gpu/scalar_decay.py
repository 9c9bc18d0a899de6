"""Linear attention with one decay for each head, over packed rows, as Triton kernels.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

Linear attention (arXiv 2006.16236, section 3.3), RetNet (arXiv 2307.08621, section 2.1), Lightning Attention
(arXiv 2401.04658) and Mamba2 (arXiv 2405.21060, whose section 6 has the form by chunks): inside a chunk the rows
read the entering state by e^G q and write e^(G_C - G) k, and among each other by e^(G_t - G_i) q_t.k_i. The states
are those of `pallas_kernels.gpu.linear_state`; here are the scores and all that has to do with gates.
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
from pallas_kernels.gpu.parts import decays_between

# By generation, then bytes of an element: blocks of the scores and of the gradients.
TUNING = {
    "sm_80": {2: (Tuning(64, 64, 4, 2), Tuning(64, 32, 4, 2)), 4: (Tuning(64, 64, 4, 1), Tuning(32, 16, 8, 1))},
    "sm_90": {2: (Tuning(64, 64, 4, 2), Tuning(64, 64, 4, 2)), 4: (Tuning(64, 64, 4, 1), Tuning(32, 32, 4, 1))},
    "sm_100": {2: (Tuning(64, 64, 4, 2), Tuning(64, 64, 4, 2)), 4: (Tuning(64, 64, 4, 1), Tuning(32, 32, 4, 1))},
    "gfx942": {2: (Tuning(64, 64, 4, 1), Tuning(64, 64, 4, 1)), 4: (Tuning(64, 64, 4, 1), Tuning(32, 32, 4, 1))},
}


@triton.jit
def scores_kernel(
    q, k, g, document, scores,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decayed and scaled products of the rows of one chunk and head."""
    at = tl.program_id(0).to(tl.int64)
    first = (at // HEADS) * C * HEADS + at % HEADS
    row = tl.arange(0, C)
    key = tl.arange(0, BK)
    here = first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :]
    total = tl.zeros((C, C), tl.float32)
    for begin in range(0, KEYS, BK):
        left, right = tl.load(q + here + begin), tl.load(k + here + begin)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    number = row
    if DOCUMENTS:
        number = tl.load(document + (at // HEADS) * C + row)
    total *= SCALE * decays_between(tl.load(g + at * C + row), number, DOCUMENTS, C)
    tl.store(scores + at * C * C + row[:, None] * C + row[None, :], total.to(scores.dtype.element_ty))


@triton.jit
def gradients_kernel(
    q, k, v, do, g, document, read_factor, write_factor, scores, borders, leaving,
    dq, dk, dg, dread_factor, dwrite_factor, dacross,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and head, a block of keys; those of gates and factors are parts to be summed."""
    at = (tl.program_id(0) // (KEYS // BK)).to(tl.int64)
    block = tl.program_id(0) % (KEYS // BK)
    first = (at // HEADS) * C * HEADS + at % HEADS
    row = tl.arange(0, C)
    key = block * BK + tl.arange(0, BK)
    dscores, dreads, dwrites, dstate = row_gradients(
        v, do, borders, leaving, at, key, HEADS, KEYS, VALUES, C, BK, BV, PRECISION
    )
    here = first * KEYS + row[:, None] * (HEADS * KEYS) + key[None, :]
    left, right = tl.load(q + here), tl.load(k + here)
    part = block * (tl.num_programs(0) // (KEYS // BK)) + at  # [key blocks, chunks, H]
    tl.store(dread_factor + part * C + row, tl.sum(left.to(tl.float32) * dreads, axis=1))
    tl.store(dwrite_factor + part * C + row, tl.sum(right.to(tl.float32) * dwrites, axis=1))
    tl.store(dacross + part, tl.sum(dstate, axis=0))

    number = row
    if DOCUMENTS:
        number = tl.load(document + (at // HEADS) * C + row)
    dproducts = (dscores * (SCALE * decays_between(tl.load(g + at * C + row), number, DOCUMENTS, C))).to(left.dtype)
    dreads *= tl.load(read_factor + at * C + row)[:, None]
    dwrites *= tl.load(write_factor + at * C + row)[:, None]
    dreads = tl.dot(dproducts, right, dreads, input_precision=PRECISION)
    dwrites = tl.dot(tl.trans(dproducts), left, dwrites, input_precision=PRECISION)
    tl.store(dq + here, dreads.to(dq.dtype.element_ty))
    tl.store(dk + here, dwrites.to(dk.dtype.element_ty))

    if block == 0:  # the gates between row i and row t are those of rows i + 1 to t
        score = tl.load(scores + at * C * C + row[:, None] * C + row[None, :])
        later = tl.cumsum(dscores * score.to(tl.float32), axis=0, reverse=True)
        tl.store(dg + at * C + row, tl.sum(tl.where(row[:, None] > row[None, :], later, 0.0), axis=1))


def scalar_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Linear attention with a decay for each head, over packed rows (module docstring).

    Args:
        q, k: [N, H, K] float32, bfloat16 or float16, K one of 16, 32, 64, 128 and 256; k or v is 0 on padding rows.
        v: [N, H, V] of the same dtype, V one of these and 512.
        g: [N, H] log decay, at most 0, and 0 on padding rows; None decays nothing.
        chunks: segments and documents of the rows, in chunks of 16, 32 or 64 rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        device: the generation to compile for, a row of `TUNING`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 states [S, H, K, V] after each segment's last row (an
        empty segment keeps its initial one), or None. In half precision the products round their operands, states
        included, to it.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    gates: dict[str, Expected] = {} if g is None else {"g": (g, q.shape[:2], FLOAT32)}
    check_rows(q, k, v, chunks, initial_state, gates, device)
    g = jnp.zeros(k.shape[:2], jnp.float32) if g is None else g
    return _scalar_decay(q, k, v, g, chunks, initial_state, float(scale), device, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _scalar_decay(q, k, v, g, chunks, initial_state, scale, device, interpret):
    return _forward(q, k, v, g, chunks, initial_state, scale, device, interpret)[0]


def _forward(q, k, v, g, chunks, initial_state, scale, device, interpret):
    g = _by_chunk(g, chunks)
    scores = _scores(q, k, v, g, chunks, scale, device, interpret)
    rows = Rows(q, k, *_row_decays(g, _documents(chunks), scale), scores)
    o, final = outputs(rows, v, chunks, initial_state, device=device, interpret=interpret)
    return (o, final), (q, k, v, g, scores, chunks, initial_state)


def _backward(scale, device, interpret, residuals, cotangents):
    q, k, v, g, scores, chunks, initial_state = residuals
    do, dfinal = cotangents
    options = {"device": device, "interpret": interpret}
    decays, pull = jax.vjp(lambda g: _row_decays(g, _documents(chunks), scale), g)
    rows = Rows(q, k, *decays, scores)
    states = both_borders(rows, v, do, chunks, initial_state, dfinal, **options)
    dq, dk, dg, ddecays = _gradients(q, k, v, do, g, decays, scores, states, chunks, scale, **options)
    dv = value_gradient(rows, v, do, states.leaving, chunks, **options)
    dg = jnp.swapaxes(dg + pull(ddecays)[0], 1, 2).reshape(q.shape[:2])
    return dq, dk, dv, dg, None, states.dinitial


_scalar_decay.defvjp(_forward, _backward)


def _by_chunk(g: jax.Array, chunks: Chunks) -> jax.Array:
    """Gates [N, H] as [chunks, H, C]."""
    return jnp.swapaxes(g.reshape(chunks.segment.shape[0], -1, g.shape[1]), 1, 2)


def _documents(chunks: Chunks) -> jax.Array | None:
    """Documents begun up to each row of a chunk, [chunks, 1, C]."""
    return None if chunks.document is None else chunks.document.reshape(chunks.segment.shape[0], 1, -1)


def _row_decays(g: jax.Array, document: jax.Array | None, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scaled decays from the chunk's start to its rows, decays from the rows to its end, [chunks, H, C], and across.

    Each is a sum over just the gates between, in one order or the other.
    """
    following = jnp.concatenate([g[..., 1:], jnp.zeros_like(g[..., :1])], -1)
    enter = jnp.exp(jnp.cumsum(g, -1))
    leave = jnp.exp(jnp.flip(jnp.cumsum(jnp.flip(following, -1), -1), -1))
    across = jnp.exp(jnp.sum(g, -1))
    if document is not None:
        enter = jnp.where(document == 0, enter, 0.0)
        leave = jnp.where(document == document[..., -1:], leave, 0.0)
        across = jnp.where(document[..., -1] == 0, across, 0.0)
    return scale * enter, leave, across


def _scores(q, k, v, g, chunks, scale, device, interpret):
    sizes = sizes_of(k, v, chunks)
    return launch(
        scores_kernel,
        q,
        k,
        g,
        g if chunks.document is None else chunks.document,
        grid=(sizes.chunks * sizes.heads,),
        outputs=[jax.ShapeDtypeStruct((sizes.chunks, sizes.heads, sizes.rows, sizes.rows), v.dtype)],
        interpret=interpret,
        device=device,
        flops=2 * k.size * sizes.rows,
        SCALE=scale,
        DOCUMENTS=chunks.document is not None,
        PRECISION=float32_precision(device, interpret),
        **sizes.constants(TUNING[device][v.dtype.itemsize][0]),
    )[0]


def _gradients(q, k, v, do, g, decays, scores, states: Borders, chunks, scale, device, interpret):
    sizes = sizes_of(k, v, chunks)
    constants = sizes.constants(TUNING[device][v.dtype.itemsize][1])
    parts = sizes.keys // constants["BK"]
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    dq, dk, dg, *dfactors = launch(
        gradients_kernel,
        q,
        k,
        v,
        do,
        g,
        g if chunks.document is None else chunks.document,
        *decays[:2],
        scores,
        states.states,
        states.leaving,
        grid=(sizes.chunks * sizes.heads * parts,),
        outputs=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            float32(g.shape),
            float32((parts, *g.shape)),
            float32((parts, *g.shape)),
            float32((parts, *g.shape[:2])),
        ],
        interpret=interpret,
        device=device,
        flops=2 * v.size * (2 * sizes.keys + sizes.rows * parts) + 4 * k.size * sizes.rows,
        SCALE=scale,
        DOCUMENTS=chunks.document is not None,
        PRECISION=float32_precision(device, interpret),
        **constants,
    )
    return dq, dk, dg, tuple(x.sum(0) for x in dfactors)
