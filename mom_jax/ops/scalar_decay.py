"""A memory that decays as a whole (simple GLA, state-space duality), over packed segments: one gate for each head.

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

Linear attention (arXiv 2006.16236, section 3.3) has no gate (``g = None``), RetNet (arXiv
2307.08621, section 2.1) and Lightning Attention (arXiv 2401.04658) a fixed one, Mamba2 (arXiv
2405.21060; q, k, v are C, B and dt x, scale is 1) one that depends on the token.

A normaliser (``o_t / (q_t . sum_i k_i)``) needs no code of its own: append a column of ones to
v, and the last column of outputs and states is the sum.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, to_chunks, transpose
from mom_jax.ops.decays import documents, head_decays, masked
from mom_jax.ops.handover import by_decays
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Transition, matrix, step_by
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float


class ScalarDecayRows(NamedTuple):
    """Rows of linear attention with a decay for each head."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    g: Float[Array, "N H"] | None = None  # log decay, at most 0; None decays nothing


def scalar_decay_transition(rows: ScalarDecayRows) -> Transition:
    """What one token does to its states."""
    q, k, v = map(widened, rows[:3])
    kept = jnp.ones_like(k) if rows.g is None else jnp.broadcast_to(jnp.exp(widened(rows.g))[..., None], k.shape)
    return Transition(kept * q, q, k, v, kept)


@functools.partial(jax.checkpoint, static_argnums=3)
def scalar_decay_chunked(
    rows: ScalarDecayRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same recurrence, chunk by chunk (arXiv 2405.21060, section 6).

    Inside a chunk with incoming state S and G the running sum of g:

        O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) V;    S' = e^(G_C) S + (e^(G_C - G) K)^T V

    Only the second equation is sequential, and it involves no matrix products. The backward pass
    keeps the inputs and recomputes everything else, the states at chunk borders included.
    """
    # [chunks, H, C, K or V]
    q, k, v = (to_chunks(x, table.chunk_size) for x in rows[:3])
    # [chunks, H, C, C], [chunks, H, C] twice, [chunks, H]
    between, enter, leave, across = _decays(rows.g, table, q)
    # [chunks, H, K, C]
    writes = transpose(leave[..., None] * k)
    # [chunks, H, K, V], [S, H, K, V]
    states, final = border_states(writes @ v, across[..., None, None], table, state)
    # [chunks, H, C, V]
    o = (between * (q @ transpose(k))) @ v + (enter[..., None] * q) @ states
    return from_chunks(scale * o).astype(rows.v.dtype), final


def _decays(
    g: Float[Array, "N H"] | None, table: ChunkTable, q: Float[Array, "chunks H C K"]
) -> tuple[Float[Array, "... C C"], Float[Array, "chunks H C"], Float[Array, "chunks H C"], Float[Array, "chunks H"]]:
    """As `head_decays`; decays between rows are shared by all heads without gates, by all chunks without documents."""
    if g is not None:
        return head_decays(to_chunks(g, table.chunk_size), table)
    inside, size = documents(table), table.chunk_size
    shape = *q.shape[:2], size
    return (
        masked(jnp.tril(jnp.ones((size, size), q.dtype)), inside.between),
        masked(jnp.ones(shape, q.dtype), inside.enter),
        masked(jnp.ones(shape, q.dtype), inside.leave),
        masked(jnp.ones(shape[:-1], q.dtype), inside.across),
    )


def _flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """FLOPs for one row and head; the backward pass repeats the forward pass."""
    forward = 2 * 2.0 * key_dim * value_dim + 2.0 * chunk * (key_dim + value_dim) + 2.0 * chunk**2
    return forward, 3 * forward


SCALAR_DECAY = Primitive(
    name="scalar decay",
    rows=ScalarDecayRows,
    state=matrix,
    step=step_by(scalar_decay_transition),
    transition=scalar_decay_transition,
    handover=by_decays,
    beside=lambda rows, read: (rows, read(scalar_decay_transition(rows).r)),
    chunked=scalar_decay_chunked,
    kernels={
        "tpu": "pallas_kernels.tpu.scalar_decay:scalar_decay",
        "gpu": "pallas_kernels.gpu.scalar_decay:scalar_decay",
    },
    inert=("k", "g"),
    flops=_flops,
)
