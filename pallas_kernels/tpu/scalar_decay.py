"""Scalar decay on a TPU: linear attention whose state decays by one gate for each head.

Per head, with a float32 state S [K, V]: ``S_t = exp(g_t) S_{t-1} + k_t v_t^T``, ``o_t = scale S_t^T q_t``.
Chunk by chunk (arXiv 2405.21060, section 6) with G the running sum of g:

    O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) V;    S' = e^(G_C) S + (e^(G_C - G) K)^T V
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import inside as within
from pallas_kernels.tpu import parts, recurrence


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The equations above for one chunk."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v = x["q"], x["k"], x["v"]
        decays = within.head_decays(x["g"], inside) if "g" in x else within.no_decays(q.shape[1], inside)
        between, enter, leave, across = decays
        scores = between * within.product(q, k, "nt", self.dtype)
        o = within.product(scores, v, "nn", self.dtype)
        o += within.times(within.product(q, state, "nn", self.dtype), enter)
        written = within.product(within.times(k, leave), v, "tn", self.dtype)
        return self.scale * o, within.times(state, across) + written


def scalar_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    chunk = q.shape[0] // chunks.segment.shape[0]
    inputs = {"q": parts.heads_first(q), "k": parts.heads_first(k), "v": parts.heads_first(v)}
    if g is not None:
        inputs["g"] = parts.pack_gates(g, chunk)
    form = recurrence.Recurrence(_Chunk(scale, str(q.dtype)), 2, chunk, interpret)
    o, final = recurrence.run(form, inputs, chunks, initial_state)
    return parts.rows_first(o), final
