"""A memory whose key channels decay each at their own rate (gated linear attention, GLA), over packed segments.

Per head, with a state S of shape [K, V] in float32:

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T

It reads the new state, ``o_t = scale * S_t^T q_t``: GLA (arXiv 2312.06635, section 4.1)
and HGRN2 (arXiv 2404.07904; k is ``1 - exp(g)``). With a bonus u it reads the old state and
weighs the current token on its own, ``o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t``: RWKV6
(arXiv 2404.05892, section 4.2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, to_chunks, transpose
from mom_jax.ops.decays import channel_decays, decayed_scores
from mom_jax.ops.handover import by_decays
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Transition, matrix, step_by
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float


class VectorDecayRows(NamedTuple):
    """Rows of linear attention with a decay for each key channel."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    g: Float[Array, "N H K"]  # log decay, at most 0
    bonus: Float[Array, "H K"] | None = None  # RWKV6's u, of all rows: read the state before the token, plus u k v^T


def vector_decay_transition(rows: VectorDecayRows) -> Transition:
    """What one token does to its states."""
    q, k, v, g = map(widened, rows[:4])
    kept = jnp.exp(g)
    through, weight = (kept * q, q) if rows.bonus is None else (q, q * widened(rows.bonus))
    return Transition(through, weight, k, v, kept)


@functools.partial(jax.checkpoint, static_argnums=3)
def vector_decay_chunked(
    rows: VectorDecayRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same recurrence, chunk by chunk, with scores between rows from `decayed_scores`.

    Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. The backward pass
    keeps the inputs and recomputes everything else, the states at chunk borders included.
    """
    # [chunks, H, C, K or V]
    q, k, v, g = (to_chunks(x, table.chunk_size) for x in rows[:4])
    decays = channel_decays(g, table)
    # [chunks, H, C, K], [chunks, H, C]
    if rows.bonus is None:
        reads, current = jnp.exp(g) * q, jnp.sum(q * k, -1)
    else:
        reads, current = q, jnp.sum(q * k * widened(rows.bonus)[:, None], -1)
    # [chunks, H, K, C]
    writes = transpose(decays.leave * k)
    # [chunks, H, K, V], [S, H, K, V]
    states, final = border_states(writes @ v, decays.across[..., None], table, state)
    # [chunks, H, C, V]
    o = decayed_scores(reads, k, decays, table) @ v + current[..., None] * v + (decays.enter * reads) @ states
    return from_chunks(scale * o).astype(rows.v.dtype), final


def vector_decay_flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """FLOPs of `vector_decay_chunked` for one row and head: forward, and backward, which repeats the forward pass.

    The cuts between pairs of rows form half of the C x C scores.
    """
    forward = 2 * 2.0 * key_dim * value_dim + 2.0 * chunk * (key_dim / 2 + value_dim)
    return forward, 3 * forward


VECTOR_DECAY = Primitive(
    name="vector decay",
    rows=VectorDecayRows,
    state=matrix,
    step=step_by(vector_decay_transition),
    transition=vector_decay_transition,
    handover=by_decays,
    beside=lambda rows, read: (rows, read(vector_decay_transition(rows).r)),
    chunked=vector_decay_chunked,
    kernels={
        "tpu": "pallas_kernels.tpu.vector_decay:vector_decay",
        "gpu": "pallas_kernels.gpu.vector_decay:vector_decay",
    },
    inert=("k", "g"),
    shared=("bonus",),
    flops=vector_decay_flops,
)
