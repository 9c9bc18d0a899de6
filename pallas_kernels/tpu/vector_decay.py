"""Vector decay on a TPU: linear attention whose key channels decay each by a gate of their own.

Per head, with a float32 state S [K, V]: ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T``, read as
``o_t = scale S_t^T q_t`` (GLA, arXiv 2312.06635, section 4.1), or with a bonus u before the token is
written, ``o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t`` (RWKV6, arXiv 2404.05892, section 4.2).

Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. Scores between the rows of a
chunk come from halving it again and again (`inside.channel_decays`), so gates of any strength are exact.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import inside as within
from pallas_kernels.tpu import parts, recurrence


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """One chunk: reads of the incoming state, scores between its rows, and what is written."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v, g = x["q"], x["k"], x["v"], x["g"]
        decays = within.channel_decays(g, inside)
        reads, own = (q, q * k * x["bonus"]) if "bonus" in x else (jnp.exp(g) * q, q * k)
        scores = within.decayed_scores(reads, k, decays, within.cut_masks(q.shape[1], inside), self.dtype)
        scores += within.diagonal(jnp.sum(own, -1, keepdims=True))
        o = within.product(scores, v, "nn", self.dtype) + within.product(decays.enter * reads, state, "nn", self.dtype)
        written = within.product(decays.leave * k, v, "tn", self.dtype)
        return self.scale * o, decays.across * state + written


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    chunk = q.shape[0] // chunks.segment.shape[0]
    inputs = {"q": parts.heads_first(q), "k": parts.heads_first(k), "v": parts.heads_first(v)}
    inputs["g"] = parts.heads_first(g).astype(jnp.float32)
    if bonus is not None:
        inputs["bonus"] = bonus[:, None].astype(jnp.float32)
    form = recurrence.Recurrence(_Chunk(scale, str(q.dtype)), 2, chunk, interpret)
    o, final = recurrence.run(form, inputs, chunks, initial_state)
    return parts.rows_first(o), final
