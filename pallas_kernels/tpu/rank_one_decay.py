"""Diagonal plus rank one on a TPU: each key channel decays, and one direction is rewritten.

Per head, with a float32 state S [K, V]: ``S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``,
``o_t = scale S_t^T q_t`` (RWKV7, arXiv 2503.14456, section 4; Kimi delta attention, arXiv 2510.26692, section 3).

Chunk by chunk, with (XY) the decayed products of rows inside a chunk, D their decays from its start and E to its end:

    U = (I - (AB))^-1 (D A S + (AK) V);   O = D Q S + (QB) U + (QK) V;   S' = diag(d) S + E B^T U + E K^T V
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import inside as within
from pallas_kernels.tpu import parts, recurrence
from pallas_kernels.tpu.triangular import unit_lower_inverse


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _solve(strict: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """``(I - strict)^-1 x`` of strictly lower triangular [MB, C, C] and [MB, C, V]."""
    return _solve_fwd(strict, x, dtype)[0]


def _solve_fwd(strict, x, dtype):
    inverse = unit_lower_inverse(-strict)
    solved = within.product(inverse, x, "nn", dtype)
    return solved, (inverse, solved)


def _solve_bwd(dtype, residuals, d):
    inverse, solved = residuals
    dx = within.product(inverse, d, "tn", dtype)
    return within.product(dx, solved, "nt", dtype), dx


_solve.defvjp(_solve_fwd, _solve_bwd)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The equations above for one chunk."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v, a, b, g = (x[name] for name in "qkvabg")
        size = q.shape[1]
        decays = within.channel_decays(g, inside)
        reads = jnp.concatenate([a, jnp.exp(g) * q], 1)  # q reads after its row's decay, a before it
        masks = within.cut_masks(size, inside, copies=2)
        to_b, to_k = (within.decayed_scores(reads, writes, decays, masks, self.dtype) for writes in (b, k))
        to_own = (within.diagonal(jnp.sum(q * writes, -1, keepdims=True)) for writes in (b, k))
        qb, qk = (scores[:, size:] + own for scores, own in zip((to_b, to_k), to_own, strict=True))

        enter = jnp.concatenate([decays.enter, decays.enter], 1)
        read = within.product(enter * reads, state, "nn", self.dtype)
        u = _solve(to_b[:, :size], read[:, :size] + within.product(to_k[:, :size], v, "nn", self.dtype), self.dtype)
        o = read[:, size:] + within.product(qb, u, "nn", self.dtype) + within.product(qk, v, "nn", self.dtype)
        written = within.product(decays.leave * b, u, "tn", self.dtype)
        written += within.product(decays.leave * k, v, "tn", self.dtype)
        return self.scale * o, decays.across * state + written


def rank_one_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    g: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    chunk = q.shape[0] // chunks.segment.shape[0]
    inputs = dict(zip("qkvabg", (parts.heads_first(x) for x in (q, k, v, a, b, g)), strict=True))
    form = recurrence.Recurrence(_Chunk(scale, str(q.dtype)), 2, chunk, interpret)
    o, final = recurrence.run(form, inputs, chunks, initial_state)
    return parts.rows_first(o), final
