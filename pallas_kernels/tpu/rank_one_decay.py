"""DPLR (diagonal plus low rank) on a TPU: each key channel decays, and one direction is rewritten.

Per head, with a float32 state S [K, V]: ``S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``,
``o_t = scale S_t^T q_t`` (RWKV7, arXiv 2503.14456, section 4; Kimi delta attention, arXiv 2510.26692, section 3).

Chunk by chunk, with (XY) the decayed products of rows inside a chunk, D their decays from its start and E to its end:

    U = (I - (AB))^-1 (D A S + (AK) V);   O = D Q S + (QB) U + (QK) V;   S' = diag(d) S + E B^T U + E K^T V

The kernels and what the backward pass keeps: `recurrence`. Products of float32 rows are exact to
float32. With bfloat16 rows q, decayed rows, states, scores and U are rounded to bfloat16 as operands of
a product, while gates, decays, the inverse, states and sums are float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, TPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Entry
from pallas_kernels.tpu import recurrence
from pallas_kernels.tpu.calls import Interpret
from pallas_kernels.tpu.cuts import channel_decays, cut_masks, decayed_scores
from pallas_kernels.tpu.layout import heads_first
from pallas_kernels.tpu.products import diagonal, rounded_product
from pallas_kernels.tpu.triangular import unit_lower_inverse

CONFIGS = {
    "forward": [Entry(Config(block_h=1), ("v4",)), Entry(Config(block_h=2))],
    "backward": [Entry(Config(block_h=1))],
}
_INSIDE = (128, 160)  # as `recurrence.apply` takes it


def _solved(strict: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """``(I - strict)^-1 x`` of strictly lower triangular [MB, C, C] and [MB, C, V]."""
    return _solve_fwd(strict, x, dtype)[0]


_solve = jax.custom_vjp(_solved, nondiff_argnums=(2,))


def _solve_fwd(strict, x, dtype):
    inverse = unit_lower_inverse(-strict, exact=dtype == "float32")
    solved = rounded_product(inverse, x, "nn", dtype)
    return solved, (inverse, solved)


def _solve_bwd(dtype, residuals, d):
    inverse, solved = residuals
    dx = rounded_product(inverse, d, "tn", dtype)
    return rounded_product(dx, solved, "nt", dtype), dx


_solve.defvjp(_solve_fwd, _solve_bwd)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The equations above for one chunk."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v, g, a, b = (x[name] for name in "qkvgab")
        size = q.shape[1]
        decays = channel_decays(g, inside)
        reads = jnp.concatenate([a, jnp.exp(g) * q], 1)  # q reads after its row's decay, a before it
        masks = cut_masks(size, inside, copies=2)
        to_b, to_k = (decayed_scores(reads, writes, decays, masks, self.dtype) for writes in (b, k))
        to_itself = (diagonal(jnp.sum(q * writes, -1, keepdims=True)) for writes in (b, k))
        qb, qk = (scores[:, size:] + itself for scores, itself in zip((to_b, to_k), to_itself, strict=True))

        enter = jnp.concatenate([decays.enter, decays.enter], 1)
        read = rounded_product(enter * reads, state, "nn", self.dtype)
        u = _solve(to_b[:, :size], read[:, :size] + rounded_product(to_k[:, :size], v, "nn", self.dtype), self.dtype)
        o = read[:, size:] + rounded_product(qb, u, "nn", self.dtype) + rounded_product(qk, v, "nn", self.dtype)
        written = rounded_product(decays.leave * b, u, "tn", self.dtype)
        written += rounded_product(decays.leave * k, v, "tn", self.dtype)
        return self.scale * o, decays.across * state + written


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
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array | None]:
    """DPLR, diagonal plus rank one, over packed rows (module docstring), with its gradients.

    Args:
        q, k: [N, H, K], float32 or bfloat16.
        v: [N, H, V], float32 or bfloat16; k or v is 0 on padding rows.
        g: [N, H, K] float32 log decay, at most 0; 0 on padding rows.
        a, b: [N, H, K], float32 or bfloat16; a reads the state before it decays. a or b is 0 on padding rows.
        chunks: segments and documents of the rows, in chunks of C = N / chunks rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        interpret: run on the host, without a TPU.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 state of every segment after its last row
        (one without rows keeps its initial state), or None without an initial state.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    others: dict[str, Expected] = {name: (x, q.shape, TPU.dtypes) for name, x in zip("kab", (k, a, b), strict=True)}
    chunk = check(TPU, q, v, chunks, initial_state, others | {"g": (g, q.shape, FLOAT32)})
    inputs = {name: heads_first(x) for name, x in zip("qkvgab", (q, k, v, g, a, b), strict=True)}
    keys, values = q.shape[-1], v.shape[-1]
    levels = chunk.bit_length() - 1
    inverse = 2 * (levels - 4) * chunk * chunk  # a merge of blocks of 16 rows and more takes two products
    flops = 2 * chunk * (4 * keys * values + chunk * (4 * levels * keys + 4 * values) + inverse)
    body = _Chunk(scale, q.dtype.name)
    return recurrence.apply(
        body, inputs, chunks, initial_state, configs=CONFIGS, inside=_INSIDE, flops=flops, interpret=interpret
    )
