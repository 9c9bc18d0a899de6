"""GLA: linear attention with one decay for each key channel, over packed rows, as Triton kernels.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

GLA (arXiv 2312.06635, section 4.1) and HGRN2 (arXiv 2404.07904). With a bonus u a token reads the state before it
and weighs itself, ``o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t``: RWKV6 (arXiv 2404.05892, section 4.2).

Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. The states are those of
`pallas_kernels.gpu.linear_state`. Scores between the rows of a chunk come from cuts: the chunk is halved again and
again, and a pair of rows i < t is parted by exactly one of these cuts. Both factors of its decay, from i to the cut
and from the cut to t, are at most 1, so that gates of any strength neither overflow nor lose what counts. One
matrix product with a mask sums the gates between each row and its cut, and nothing else.
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
from pallas_kernels.configs import AMD, HOPPER, NVIDIA, Config, Entry
from pallas_kernels.gpu import linear_state
from pallas_kernels.gpu.calls import checked_call
from pallas_kernels.gpu.cuts import border_decays, from_cut, masked_sums, parted, to_cut
from pallas_kernels.gpu.decays import load_documents
from pallas_kernels.gpu.linear_state import Borders, Rows, both_borders, outputs, row_gradients, value_gradient
from pallas_kernels.gpu.tiles import per_row, place_of, tile

CONFIGS = linear_state.CONFIGS | {
    "prepare": [
        Entry(Config(block_k=32, num_warps=8, num_stages=1), HOPPER, itemsize=2),
        Entry(Config(block_k=16, num_warps=8, num_stages=1), NVIDIA),
        Entry(Config(block_k=16, num_warps=4, num_stages=1), AMD, itemsize=4),
        Entry(Config(block_k=32, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
    "gradients": [
        Entry(Config(block_k=16, block_v=16, num_warps=8, num_stages=1), NVIDIA, itemsize=4),
        Entry(Config(block_k=16, block_v=16, num_warps=4, num_stages=1), AMD, itemsize=4),
        Entry(Config(block_k=16, block_v=32, num_warps=8, num_stages=1), ("sm_80",), itemsize=2),
        Entry(Config(block_k=16, block_v=32, num_warps=4, num_stages=1), ("sm_90",), itemsize=2),
        Entry(Config(block_k=16, block_v=64, num_warps=8, num_stages=1), ("sm_100",), itemsize=2),
        Entry(Config(block_k=32, block_v=64, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
}


@triton.jit
def prepare_kernel(
    p_q, p_k, p_g, p_bonus, p_document, p_scores, p_reads, p_writes, p_across, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BONUS: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of one chunk and head, what its rows read and write at its borders, and the decay across it."""
    row, head, at = place_of(tl.program_id(0), HEADS, C)
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    scores = tl.zeros((C, C), tl.float32)
    itself = tl.zeros((C,), tl.float32)
    dtype = p_reads.dtype.element_ty
    for key in range(0, K, BK):
        b_q = SCALE * tl.load(tile(p_q, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK)).to(tl.float32)
        b_g = tl.load(tile(p_g, row, head, key, HEADS, K, C, BK))
        if BONUS:
            itself += tl.sum(b_q * b_k * tl.load(per_row(p_bonus, head * K + key, 0, 1, BK))[None, :], axis=1)
        else:
            itself += tl.sum(b_q * b_k, axis=1)
            b_q *= tl.exp(b_g)
        enter, leave, across = border_decays(b_g, b_document, cuts, DOCUMENTS, PRECISION, C)
        tl.store(tile(p_reads, row, head, key, HEADS, K, C, BK), (b_q * enter).to(dtype))
        tl.store(tile(p_writes, row, head, key, HEADS, K, C, BK), (b_k * leave).to(dtype))
        tl.store(per_row(p_across, at * K + key, 0, 1, BK), across)
        for cut in range(cuts):  # a bound that is no constant keeps the loop a loop, in fewer registers
            decay = tl.exp(masked_sums(to_cut(cut, C), b_g, PRECISION))
            since, until = (b_q * decay).to(dtype), (b_k * decay).to(dtype)
            products = tl.dot(since, tl.trans(until), input_precision=PRECISION)
            scores += tl.where(parted(cut, C), products, 0.0)
    if DOCUMENTS:
        scores = tl.where(b_document[:, None] == b_document[None, :], scores, 0.0)
    scores += tl.where(t == i, itself[:, None], 0.0)
    tl.store(tile(p_scores, at * C, 0, 0, 1, C, C, C), scores.to(p_scores.dtype.element_ty))


@triton.jit
def gradients_kernel(
    p_q, p_k, p_v, p_do, p_g, p_bonus, p_document, p_borders, p_leaving, p_dq, p_dk, p_dg, p_dbonus, cuts,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BONUS: tl.constexpr, DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and head, a block of keys; that of the bonus is a part to be summed over chunks."""
    row, head, at = place_of(tl.program_id(0) // (K // BK), HEADS, C)
    key = (tl.program_id(0) % (K // BK)) * BK
    t = tl.arange(0, C)[:, None]
    i = tl.arange(0, C)[None, :]
    dscores, dreads, dwrites, dacross = row_gradients(
        p_v, p_do, p_borders, p_leaving, row, head, at, key, HEADS, K, V, C, BK, BV, PRECISION
    )
    weight = tl.expand_dims(tl.sum(tl.where(t == i, dscores, 0.0), axis=1), 1)  # of a row's product with itself
    b_document = load_documents(p_document, row, DOCUMENTS, C)
    if DOCUMENTS:
        dscores = tl.where(b_document[:, None] == b_document[None, :], dscores, 0.0)
    b_q = SCALE * tl.load(tile(p_q, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_k = tl.load(tile(p_k, row, head, key, HEADS, K, C, BK)).to(tl.float32)
    b_g = tl.load(tile(p_g, row, head, key, HEADS, K, C, BK))
    if BONUS:
        tl.store(per_row(p_dbonus, at * K + key, 0, 1, BK), tl.sum(weight * b_q * b_k, axis=0))
        weight *= tl.load(per_row(p_bonus, head * K + key, 0, 1, BK))[None, :]
        decayed = b_q
    else:
        decayed = b_q * tl.exp(b_g)

    enter, leave, across = border_decays(b_g, b_document, cuts, DOCUMENTS, PRECISION, C)
    dreads *= enter
    dwrites *= leave
    dg = (across * dacross)[None, :] + masked_sums(to_cut(cuts, C), decayed * dreads, PRECISION)
    dg += masked_sums(from_cut(cuts, C), b_k * dwrites, PRECISION)
    dwrites += weight * b_q  # here, so that b_q need not be kept in registers
    dtype = p_q.dtype.element_ty
    for cut in range(cuts):  # a bound that is no constant keeps the loop a loop, in fewer registers
        decay = tl.exp(masked_sums(to_cut(cut, C), b_g, PRECISION))
        since, until = (decayed * decay).to(dtype), (b_k * decay).to(dtype)
        dproducts = tl.where(parted(cut, C), dscores, 0.0).to(dtype)
        dsince = decay * tl.dot(dproducts, until, input_precision=PRECISION)
        duntil = decay * tl.dot(tl.trans(dproducts), since, input_precision=PRECISION)
        dreads += dsince
        dwrites += duntil
        dg += masked_sums(from_cut(cut, C), decayed * dsince + b_k * duntil, PRECISION)

    if BONUS:
        dq = dreads
    else:
        dq = tl.exp(b_g) * dreads
        dg += decayed * dreads
    tl.store(tile(p_dq, row, head, key, HEADS, K, C, BK), (SCALE * (dq + weight * b_k)).to(dtype))
    tl.store(tile(p_dk, row, head, key, HEADS, K, C, BK), dwrites.to(dtype))
    tl.store(tile(p_dg, row, head, key, HEADS, K, C, BK), dg)


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
    """GLA, linear attention with a decay for each key channel, over packed rows (module docstring).

    The backward pass keeps the inputs, two more rows of K channels, and the scores.

    Args:
        q, k: [N, H, K] float32, bfloat16 or float16, K one of 16, 32, 64, 128 and 256; k or v is 0 on padding rows.
        v: [N, H, V] of the same dtype, V one of these and 512.
        g: [N, H, K] log decay, at most 0, and 0 on padding rows.
        bonus: [H, K] weight of the token itself, which then reads the state before it, or None.
        chunks: segments and documents of the rows, in chunks of 16, 32 or 64 rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 states [S, H, K, V] after each segment's last row (an
        empty segment keeps its initial one), or None. In half precision the products round their operands, states
        and decayed rows included, to it.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    gates: dict[str, Expected] = {"g": (g, q.shape, FLOAT32)}
    if bonus is not None:
        gates["bonus"] = (bonus, q.shape[1:], FLOAT32)
    call = checked_call(q, k, v, gates, chunks, initial_state, scale, device, interpret)
    return _vector_decay(q, k, v, g, bonus, chunks, initial_state, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _vector_decay(q, k, v, g, bonus, chunks, initial_state, call):
    return _forward(q, k, v, g, bonus, chunks, initial_state, call)[0]


def _forward(q, k, v, g, bonus, chunks, initial_state, call):
    rows = _prepare(q, k, g, bonus, chunks, call)
    o, final = outputs(rows, v, chunks, initial_state, call)
    return (o, final), (q, k, v, g, bonus, rows, chunks, initial_state)


def _backward(call, residuals, cotangents):
    q, k, v, g, bonus, rows, chunks, initial_state = residuals
    do, dfinal = cotangents
    borders = both_borders(rows, v, do, chunks, initial_state, dfinal, call)
    dq, dk, dg, dbonus = _gradients(q, k, v, do, g, bonus, borders, chunks, call)
    dv = value_gradient(rows, v, do, borders.leaving, call)
    return dq, dk, dv, dg, dbonus, None, borders.dinitial


_vector_decay.defvjp(_forward, _backward)


def _prepare(q, k, g, bonus, chunks, call) -> Rows:
    square = jax.ShapeDtypeStruct((call.chunks, call.heads, call.rows, call.rows), k.dtype)
    across = jax.ShapeDtypeStruct((call.chunks, call.heads, call.keys), jnp.float32)
    scores, reads, writes, across = call.run(
        prepare_kernel, call.config(CONFIGS, "prepare"), q, k, g, bonus, chunks.document,
        grid={"chunks and heads": call.chunks * call.heads},
        outputs=[square, like(q), like(k), across],
        flops=4 * k.size * call.rows * (call.cuts + 1),
        BONUS=bonus is not None,
    )  # fmt: skip
    return Rows(reads, writes, None, None, across, scores)


def _gradients(q, k, v, do, g, bonus, borders: Borders, chunks, call):
    config = call.config(CONFIGS, "gradients")
    parts = call.keys // config.block_k
    of_bonus = None if bonus is None else jax.ShapeDtypeStruct((call.chunks, *bonus.shape), jnp.float32)
    dq, dk, dg, dbonus = call.run(
        gradients_kernel, config, q, k, v, do, g, bonus, chunks.document, borders.states, borders.leaving,
        grid={"blocks": call.chunks * call.heads * parts},
        outputs=[like(q), like(k), like(g), of_bonus],
        flops=2 * v.size * (2 * call.keys + call.rows * parts) + 8 * k.size * call.rows * (call.cuts + 1),
        BONUS=bonus is not None,
    )  # fmt: skip
    return dq, dk, dg, None if bonus is None else dbonus.sum(0)
