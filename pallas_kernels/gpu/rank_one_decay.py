"""DPLR (diagonal plus low rank) over packed rows, as Triton kernels: channels decay, one direction is rewritten.

Per head, with a float32 state S [K, V]: ``S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``,
``o_t = scale S_t^T q_t`` (RWKV7, arXiv 2503.14456, section 4; Kimi delta attention, arXiv 2510.26692, section 3).

Chunk by chunk, with (xy) the decayed products of rows inside a chunk, D their decays from its start and E to its end:

    U = (I - (ab))^-1 (D A S + (ak) V);   O = D Q S + (qb) U + (qk) V;   S' = diag(d) S + (E B)^T U + (E K)^T V

and their gradients, from dO and dS', with R what a rows read:

    dR = (I - (ab))^-T (E B dS' + (qb)^T dO);   dV = E K dS' + (ak)^T dR + (qk)^T dO
    dS = diag(d) dS' + (D A)^T dR + (D Q)^T dO

These are the equations above with readers and writers exchanged and all triangles transposed, so that one kernel
carries both, S from a segment's first chunk to its last and dS back. Scores between rows come from cuts (`vector_decay`
says how), and the gradients of rows from dR, dO, U, V and the states at the borders of their chunk alone:

    d(ab) = dR U^T, d(ak) = dR V^T, d(qb) = dO U^T, d(qk) = dO V^T;   d(D A) = dR S^T, ..., d(E K) = V dS'^T
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, GPU, Expected, like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import AMD, HOPPER, NVIDIA, Config, Entry
from pallas_kernels.gpu.calls import checked_call
from pallas_kernels.gpu.rank_one_decay_gradients import gradients_kernel, score_gradients_kernel
from pallas_kernels.gpu.rank_one_decay_kernels import along_kernel, prepare_kernel

# Of the kernel that carries a block of the state along a segment, in three ways. None for float32 heads above 128 on
# sm_80, where XLA moves less than what it would spill.
_ALONG = [
    Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=1), ("sm_80",), itemsize=4, size=128),
    Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=1), (*HOPPER, *AMD), itemsize=4),
    Entry(Config(block_k=128, block_v=32, num_warps=4, num_stages=2), HOPPER, itemsize=2, size=128),
    Entry(Config(block_k=128, block_v=32, num_warps=8, num_stages=1), ("sm_80",), itemsize=2, size=128),
    Entry(Config(block_k=256, block_v=16, num_warps=8, num_stages=1), ("sm_80",), itemsize=2),
    Entry(Config(block_k=256, block_v=32, num_warps=8, num_stages=1), HOPPER, itemsize=2),
    Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=2),
]
CONFIGS = {
    "prepare": [
        Entry(Config(block_k=16, num_warps=8, num_stages=1), NVIDIA),
        Entry(Config(block_k=16, num_warps=4, num_stages=1), AMD),
    ],
    "outputs": [*_ALONG],
    "borders": [*_ALONG],
    "reverse": [*_ALONG],
    "score_gradients": [
        Entry(Config(block_v=16, num_warps=8, num_stages=1), itemsize=4),
        Entry(Config(block_v=32, num_warps=8, num_stages=2), ("sm_80",), itemsize=2),
        Entry(Config(block_v=32, num_warps=8, num_stages=1), itemsize=2),
    ],
    "gradients": [
        Entry(Config(block_k=16, block_v=16, num_warps=8, num_stages=1), NVIDIA, itemsize=4),
        Entry(Config(block_k=16, block_v=16, num_warps=4, num_stages=1), AMD, itemsize=4),
        Entry(Config(block_k=16, block_v=32, num_warps=8, num_stages=1), NVIDIA, itemsize=2),
        Entry(Config(block_k=16, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
}


def rank_one_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    a: jax.Array,
    b: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """DPLR, diagonal plus rank one, over packed rows (module docstring), with its gradients.

    The backward pass keeps the inputs, four more rows of K channels, and four of C.

    Args:
        q: [N, H, K] float32, bfloat16 or float16, K one of 16, 32, 64, 128 and 256.
        k, a, b: [N, H, K] in any of these dtypes, rounded to that of q; a meets the state before it decays. a or b is 0
            on padding rows.
        v: [N, H, V] in any of them, V one of these sizes and 512; k or v is 0 on padding rows.
        g: [N, H, K] float32 log decay, at most 0, and 0 on padding rows.
        chunks: segments and documents of the rows, in chunks of 16, 32 or 64 rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 states [S, H, K, V] after each segment's last row (an
        empty segment keeps its initial one), or None. In half precision the products round their operands to it:
        states, decayed rows, scores and U.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    rows: dict[str, Expected] = {name: (x, q.shape, GPU.dtypes) for name, x in zip("kab", (k, a, b), strict=True)}
    rows |= {"v": (v, (*q.shape[:2], v.shape[-1]), GPU.dtypes), "g": (g, q.shape, FLOAT32)}
    call = checked_call(q, k, v, rows, chunks, initial_state, scale, device, interpret)
    rounded = (x.astype(q.dtype) for x in (k, v, a, b))  # by XLA, where these rows are made
    run: Any = _rank_one_decay
    o, final = run((q, *rounded), g, chunks, initial_state, call)
    return o.astype(v.dtype), final


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _rank_one_decay(rows, g, chunks, initial_state, call):
    return _forward(rows, g, chunks, initial_state, call)[0]


def _forward(rows, g, chunks, initial_state, call):
    ready = _prepare(rows, g, chunks, call)
    o, _, _, final = _along("outputs", ready, rows[2], chunks, initial_state, call)
    return (o, final), (rows, g, ready, chunks, initial_state)


def _backward(call, residuals, cotangents):
    rows, g, ready, chunks, initial_state = residuals
    (q, k, v, a, b), (do, dfinal) = rows, cotangents
    _, u, borders, _ = _along("borders", ready, v, chunks, initial_state, call)
    dv, dread, leaving, dinitial = _along("reverse", ready.reversed(), do, chunks, dfinal, call)
    of_values = v, u, do, dread
    dq, dk, da, db, dg = _gradients((q, k, a, b, g), of_values, borders, leaving, chunks, call)
    return (dq, dk, dv, da, db), dg, None, dinitial


_rank_one_decay.defvjp(_forward, _backward)


class _Ready(NamedTuple):
    """What the rows of all chunks do to the states, and in their chunk; in the dtype of the rows.

    In `along_kernel`'s words, with x what b writes and o what q reads.
    """

    reads_x: jax.Array  # [N, H, K], of a
    reads_o: jax.Array  # of q
    writes_x: jax.Array  # of b
    writes_v: jax.Array  # of k
    inverse: jax.Array  # [chunks, H, C, C]
    xv: jax.Array  # (ak)
    ox: jax.Array  # (qb)
    ov: jax.Array  # (qk)
    across: jax.Array  # [chunks, H, K] float32

    def reversed(self) -> "_Ready":
        """Readers and writers exchanged, for gradients: triangles are to be transposed as well."""
        readers, writers = (self.writes_x, self.writes_v), (self.reads_x, self.reads_o)
        return _Ready(*readers, *writers, self.inverse, self.ox, self.xv, self.ov, self.across)


def _squares(call):
    return jax.ShapeDtypeStruct((call.chunks, call.heads, call.rows, call.rows), call.dtype)


def _prepare(rows, g, chunks, call) -> _Ready:
    q, k, _, a, b = rows
    across = jax.ShapeDtypeStruct((call.chunks, call.heads, call.keys), jnp.float32)
    reads_a, reads_q, writes_b, writes_k, across, inverse, ak, qb, qk = call.run(
        prepare_kernel, call.config(CONFIGS, "prepare"), q, k, a, b, g, chunks.document,
        grid={"chunks and heads": call.chunks * call.heads},
        outputs=[*map(like, (a, q, b, k)), across, *[_squares(call)] * 4],
        flops=2 * q.size * call.rows * (5 * call.cuts + 2),
    )  # fmt: skip
    return _Ready(reads_a, reads_q, writes_b, writes_k, inverse, ak, qb, qk, across)


def _along(name, ready: _Ready, v, chunks, initial_state, call):
    """Outputs [N, H, V], what b writes, states before each chunk [chunks, H, K, V], and the states at the end.

    ``outputs`` makes the first and the last, ``borders`` those between, ``reverse`` all; what is not made is None.
    """
    config, runs = call.config(CONFIGS, name), chunks.runs
    borders, final = name != "outputs", name != "borders" and initial_state is not None
    states = jax.ShapeDtypeStruct((call.chunks, call.heads, call.keys, call.values), v.dtype)
    made = (name != "borders", like(v)), (borders, like(v)), (borders, states), (final, like(initial_state))
    return call.run(
        along_kernel, config, *ready, v, runs, initial_state,
        grid={"blocks": runs.shape[0] * call.heads * (call.values // config.block_v)},
        outputs=[x if wanted else None for wanted, x in made],
        flops=2 * v.size * (3 * call.keys + 2 * call.rows + (name != "borders") * (call.keys + 2 * call.rows)),
        OUTPUTS=name != "borders", BORDERS=borders, STATE=initial_state is not None, FINAL=final,
        REVERSE=name == "reverse",
    )  # fmt: skip


def _gradients(rows, of_values, borders, leaving, chunks, call):
    """Gradients of q, k, a, b and g; ``of_values`` are v, u and the gradients of what q and a read."""
    scores = call.run(
        score_gradients_kernel, call.config(CONFIGS, "score_gradients"), *of_values, chunks.document,
        grid={"chunks and heads": call.chunks * call.heads},
        outputs=[_squares(call)] * 4,
        flops=8 * of_values[0].size * call.rows,
    )  # fmt: skip
    config = call.config(CONFIGS, "gradients")
    v, *others = of_values
    return call.run(
        gradients_kernel, config, *rows, v, chunks.document, *others, borders, leaving, *scores,
        grid={"blocks": call.chunks * call.heads * (call.keys // config.block_k)},
        outputs=list(map(like, rows)),
        flops=8 * v.size * call.keys + 2 * rows[0].size * call.rows * (12 * call.cuts + 4),
    )  # fmt: skip
