"""Simple GLA: linear attention with one decay for each head, over packed rows, as Triton kernels.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

Linear attention (arXiv 2006.16236, section 3.3), RetNet (arXiv 2307.08621, section 2.1), Lightning Attention
(arXiv 2401.04658) and Mamba2 (arXiv 2405.21060, whose section 6 has the form by chunks): inside a chunk the rows
read the entering state by e^G q and write e^(G_C - G) k, and among each other by e^(G_t - G_i) q_t.k_i. The states
are those of `pallas_kernels.gpu.linear_state`; here are the scores and all that has to do with gates.
"""

# Triton's annotations do not describe what its compiler accepts for constexpr.
# pyright: reportArgumentType=false

import functools

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.arguments import FLOAT32, Expected, like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import AMD, NVIDIA, Config, Entry
from pallas_kernels.gpu import linear_state
from pallas_kernels.gpu.calls import checked_call
from pallas_kernels.gpu.decays import decays_between, load_documents
from pallas_kernels.gpu.linear_state import Borders, Rows, both_borders, outputs, row_gradients, value_gradient
from pallas_kernels.gpu.tiles import per_row, place_of, tile
from pallas_kernels.remat import keep

CONFIGS = linear_state.CONFIGS | {
    "scores": [
        Entry(Config(block_k=64, num_warps=4, num_stages=2), NVIDIA, itemsize=2),
        Entry(Config(block_k=64, num_warps=4, num_stages=1)),
    ],
    "gradients": [
        Entry(Config(block_k=32, block_v=16, num_warps=8, num_stages=1), ("sm_80",), itemsize=4),
        Entry(Config(block_k=32, block_v=32, num_warps=4, num_stages=1), itemsize=4),
        Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=2), ("sm_80",), itemsize=2),
        Entry(Config(block_k=64, block_v=64, num_warps=4, num_stages=2), ("sm_90",), itemsize=2),
        Entry(Config(block_k=64, block_v=64, num_warps=8, num_stages=2), ("sm_100",), itemsize=2),
        Entry(Config(block_k=64, block_v=64, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
}


@triton.jit
def scores_kernel(
    p_q, p_k, p_g, p_document, p_scores,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decayed and scaled products of the rows of one chunk and head."""
    row, head, at = place_of(tl.program_id(0), HEADS, C)
    scores = tl.zeros((C, C), tl.float32)
    for key in range(0, K, BK):
        b_q = tl.load(tile(p_q, row, head, key, HEADS, K, C, BK))
        b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK))
        scores = tl.dot(b_q, tl.trans(b_k), scores, input_precision=PRECISION)
    b_g = tl.load(per_row(p_g, at * C, 0, 1, C))
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    scores *= SCALE * decays_between(b_g, b_document, DOCUMENTS, C)
    tl.store(tile(p_scores, at * C, 0, 0, 1, C, C, C), scores.to(p_scores.dtype.element_ty))


@triton.jit
def gradients_kernel(
    p_q, p_k, p_v, p_do, p_g, p_document, p_read_factor, p_write_factor, p_scores, p_borders, p_leaving,
    p_dq, p_dk, p_dg, p_dread_factor, p_dwrite_factor, p_dacross,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and head, a block of keys; those of gates and factors are parts to be summed."""
    row, head, at = place_of(tl.program_id(0) // (K // BK), HEADS, C)
    block = tl.program_id(0) % (K // BK)
    key = block * BK
    dscores, dreads, dwrites, dacross = row_gradients(
        p_v, p_do, p_borders, p_leaving, row, head, at, key, HEADS, K, V, C, BK, BV, PRECISION
    )
    b_q = tl.load(tile(p_q, row, head, key, HEADS, K, C, BK))
    b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK))
    part = block * (tl.num_programs(0) // (K // BK)) + at  # [key blocks, chunks, HEADS]
    tl.store(per_row(p_dread_factor, part * C, 0, 1, C), tl.sum(b_q.to(tl.float32) * dreads, axis=1))
    tl.store(per_row(p_dwrite_factor, part * C, 0, 1, C), tl.sum(b_k.to(tl.float32) * dwrites, axis=1))
    tl.store(p_dacross + part, tl.sum(dacross, axis=0))

    b_g = tl.load(per_row(p_g, at * C, 0, 1, C))
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    dproducts = (dscores * (SCALE * decays_between(b_g, b_document, DOCUMENTS, C))).to(b_q.dtype)
    dreads *= tl.load(per_row(p_read_factor, at * C, 0, 1, C))[:, None]
    dwrites *= tl.load(per_row(p_write_factor, at * C, 0, 1, C))[:, None]
    dq = tl.dot(dproducts, b_k, dreads, input_precision=PRECISION)
    dk = tl.dot(tl.trans(dproducts), b_q, dwrites, input_precision=PRECISION)
    tl.store(tile(p_dq, row, head, key, HEADS, K, C, BK), dq.to(p_dq.dtype.element_ty))
    tl.store(tile(p_dk, row, head, key, HEADS, K, C, BK), dk.to(p_dk.dtype.element_ty))

    if block == 0:  # the gates between row i and row t are those of rows i + 1 to t
        b_scores = tl.load(tile(p_scores, at * C, 0, 0, 1, C, C, C))
        later = tl.cumsum(dscores * b_scores.to(tl.float32), axis=0, reverse=True)
        t = tl.arange(0, C)[:, None]
        i = tl.arange(0, C)[None, :]
        tl.store(per_row(p_dg, at * C, 0, 1, C), tl.sum(tl.where(t > i, later, 0.0), axis=1))


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
    """Simple GLA, linear attention with a decay for each head, over packed rows (module docstring).

    Args:
        q, k: [N, H, K] float32, bfloat16 or float16, K one of 16, 32, 64, 128 and 256; k or v is 0 on padding rows.
        v: [N, H, V] of the same dtype, V one of these and 512.
        g: [N, H] log decay, at most 0, and 0 on padding rows; None decays nothing.
        chunks: segments and documents of the rows, in chunks of 16, 32 or 64 rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
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
    call = checked_call(q, k, v, gates, chunks, initial_state, scale, device, interpret)
    if g is None:  # behind a barrier, or XLA would add up the zeros of all chunks while it compiles, for minutes
        g = jax.lax.optimization_barrier(jnp.zeros(k.shape[:2], jnp.float32))
    return _scalar_decay(q, k, v, g, chunks, initial_state, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _scalar_decay(q, k, v, g, chunks, initial_state, call):
    return _forward(q, k, v, g, chunks, initial_state, call)[0]


def _forward(q, k, v, g, chunks, initial_state, call):
    g = _by_chunk(g, chunks)
    scores = keep(_scores(q, k, g, chunks, call))
    rows = Rows(q, k, *_row_decays(g, chunks.by_chunk(), call.scale), scores)
    o, final = outputs(rows, v, chunks, initial_state, call)
    return (o, final), (q, k, v, g, scores, chunks, initial_state)


def _backward(call, residuals, cotangents):
    q, k, v, g, scores, chunks, initial_state = residuals
    do, dfinal = cotangents
    decays, pull = jax.vjp(lambda g: _row_decays(g, chunks.by_chunk(), call.scale), g)
    rows = Rows(q, k, *decays, scores)
    borders = both_borders(rows, v, do, chunks, initial_state, dfinal, call)
    dq, dk, dg, ddecays = _gradients(q, k, v, do, g, decays, scores, borders, chunks, call)
    dv = value_gradient(rows, v, do, borders.leaving, call)
    dg = jnp.swapaxes(dg + pull(ddecays)[0], 1, 2).reshape(q.shape[:2])
    return dq, dk, dv, dg, None, borders.dinitial


_scalar_decay.defvjp(_forward, _backward)


def _by_chunk(g: jax.Array, chunks: Chunks) -> jax.Array:
    """Gates [N, H] as [chunks, H, C]."""
    return jnp.swapaxes(g.reshape(chunks.segment.shape[0], -1, g.shape[1]), 1, 2)


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


def _scores(q, k, g, chunks, call):
    return call.run(
        scores_kernel, call.config(CONFIGS, "scores"), q, k, g, chunks.document,
        grid={"chunks and heads": call.chunks * call.heads},
        outputs=[jax.ShapeDtypeStruct((call.chunks, call.heads, call.rows, call.rows), k.dtype)],
        flops=2 * k.size * call.rows,
    )[0]  # fmt: skip


def _gradients(q, k, v, do, g, decays, scores, borders: Borders, chunks, call):
    config = call.config(CONFIGS, "gradients")
    parts = call.keys // config.block_k
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    dq, dk, dg, *dfactors = call.run(
        gradients_kernel, config, q, k, v, do, g, chunks.document, *decays[:2], scores, borders.states, borders.leaving,
        grid={"blocks": call.chunks * call.heads * parts},
        outputs=[like(q), like(k), like(g), *map(float32, [(parts, *g.shape)] * 2), float32((parts, *g.shape[:2]))],
        flops=2 * v.size * (2 * call.keys + call.rows * parts) + 4 * k.size * call.rows,
    )  # fmt: skip
    return dq, dk, dg, tuple(x.sum(0) for x in dfactors)
