"""The gated delta rule over packed segments (Gated DeltaNet, arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

``g = 0`` is the plain delta rule (DeltaNet, arXiv 2406.06484). Keys are expected L2-normalised.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.chunk_groups import ChunkForm, run_in_groups
from mom_jax.ops.chunks import from_chunks, to_chunks, transpose
from mom_jax.ops.decays import head_decays
from mom_jax.ops.handover import by_columns
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Transition, matrix, step_by
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import unit_lower_inverse
from mom_jax.typing import Array, Float


class DeltaRuleRows(NamedTuple):
    """Rows of the gated delta rule."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]  # L2-normalised
    v: Float[Array, "N H V"]
    g: Float[Array, "N H"]  # log decay, at most 0
    beta: Float[Array, "N H"]  # write strength


def delta_rule_transition(rows: DeltaRuleRows) -> Transition:
    """What one token does to its states."""
    q, k, v, g, beta = map(widened, rows)
    beta, kept = beta[..., None], jnp.broadcast_to(jnp.exp(g)[..., None], k.shape)
    return Transition(kept * q, q, k, beta * v, kept, a=kept * k, b=-beta * k)


def delta_rule_chunked(
    rows: DeltaRuleRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same recurrence, chunk by chunk (WY form, arXiv 2412.06464 section 3.3).

    Inside a chunk with incoming state S and G the running sum of g:

        A_ti = beta_t e^(G_t - G_i) k_t.k_i  (i < t);    R = V - e^G (K S);    U = (I + A)^-1 (beta R)
        O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) U;    S' = e^(G_C) S + (e^(G_C - G) K)^T U

    The backward pass keeps R and the inverse: for each row and head, one more value row and C floats.
    """
    q, k, v, g, beta = (to_chunks(x, table.chunk_size) for x in rows)
    o, state = run_in_groups(_FORM, DELTA_RULE.state_of(rows), (scale * q, k, v, g, beta), table, state)
    return from_chunks(o).astype(rows.v.dtype), state


# q, k, v, g and beta of a group of chunks
_Rows = tuple[
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C V"],
    Float[Array, "chunks H C"],
    Float[Array, "chunks H C"],
]
# the same without v
_Saved = tuple[
    Float[Array, "chunks H C K"], Float[Array, "chunks H C K"], Float[Array, "chunks H C"], Float[Array, "chunks H C"]
]


class _Chunk(NamedTuple):
    """The part of a chunk that does not depend on the state: [H, ...], or [chunks, H, ...] for a group."""

    writes: Float[Array, "*chunks H C K"]  # e^(G_C - G) k
    reads: Float[Array, "*chunks H 2*C K"]  # what reads the incoming state: -e^G k for R, e^G q for O
    across: Float[Array, "*chunks H"]  # e^(G_C): decay over the whole chunk
    inverse: Float[Array, "*chunks H C C"]  # (I + A)^-1
    scores: Float[Array, "*chunks H C C"]  # decayed lower triangle of q k^T


class _Forward(NamedTuple):
    chunk: _Chunk
    inside: Float[Array, "*chunks H 2*C C"]  # from R to U, and to its part of O
    v: Float[Array, "*chunks H C V"]


class _Backward(NamedTuple):
    chunk: _Chunk
    beta: Float[Array, "*chunks H C"]
    u: Float[Array, "*chunks H C V"]
    residual: Float[Array, "*chunks H C V"]
    do: Float[Array, "*chunks H C V"]
    du: Float[Array, "*chunks H C V"]  # through the outputs of the chunk itself


class _Gradients(NamedTuple):
    """The gradients of one chunk, or of several, stacked."""

    residual: Float[Array, "*chunks H C V"]  # of beta R
    reads: Float[Array, "*chunks H 2*C K"]
    writes: Float[Array, "*chunks H C K"]
    across: Float[Array, "*chunks H"]


def _chunk(
    q: Float[Array, "chunks H C K"],
    k: Float[Array, "chunks H C K"],
    g: Float[Array, "chunks H C"],
    beta: Float[Array, "chunks H C"],
    table: ChunkTable,
    inverse: Float[Array, "chunks H C C"] | None = None,
) -> _Chunk:
    # between [chunks, H, C, C]; enter, leave [chunks, H, C]; across [chunks, H]
    between, enter, leave, across = head_decays(g, table)
    if inverse is None:
        # [chunks, H, C, C]
        inverse = unit_lower_inverse(jnp.tril(beta[..., None] * between * (k @ transpose(k)), -1))
    # [chunks, H, 2C, K]
    reads = jnp.concatenate([-enter[..., None] * k, enter[..., None] * q], -2)
    return _Chunk(leave[..., None] * k, reads, across, inverse, between * (q @ transpose(k)))


def _prepare(rows: _Rows, table: ChunkTable) -> tuple[_Forward, Float[Array, "chunks H C C"]]:
    q, k, v, g, beta = rows
    chunk = _chunk(q, k, g, beta, table)
    # [chunks, H, C, C] from R to U
    to_update = chunk.inverse * beta[..., None, :]
    return _Forward(chunk, jnp.concatenate([to_update, chunk.scores @ to_update], -2), v), chunk.inverse


def _forward(
    chunk: _Forward, state: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], Float[Array, "H C V"], Float[Array, "H C V"]]:
    size = chunk.v.shape[-2]
    # [H, 2C, V]
    read = chunk.chunk.reads @ state
    # [H, C, V]
    residual = chunk.v + read[..., :size, :]
    # [H, 2C, V]: U, and its part of O
    written = chunk.inside @ residual
    return _advanced(chunk.chunk, state, written[..., :size, :]), written[..., size:, :] + read[..., size:, :], residual


def _advanced(chunk: _Chunk, state: Float[Array, "H K V"], u: Float[Array, "H C V"]) -> Float[Array, "H K V"]:
    return chunk.across[..., None, None] * state + transpose(chunk.writes) @ u


def _resume(
    rows: _Saved,
    table: ChunkTable,
    kept: tuple[Float[Array, "chunks H C C"], Float[Array, "chunks H C V"]],
    do: Float[Array, "chunks H C V"],
) -> tuple[_Backward, Callable[..., _Rows]]:
    q, k, g, beta = rows
    inverse, residual = kept
    chunk = _chunk(q, k, g, beta, table, inverse)
    # [chunks, H, C, V]
    u = inverse @ (beta[..., None] * residual)
    return _Backward(chunk, beta, u, residual, do, transpose(chunk.scores) @ do), lambda *x: _pull(q, k, g, table, *x)


def _backward(
    chunk: _Backward, state: Float[Array, "H K V"], dstate: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], _Gradients]:
    ready = chunk.chunk
    # [H, C, V]
    dresidual = transpose(ready.inverse) @ (chunk.du + ready.writes @ dstate)
    # [H, 2C, V]
    dread = jnp.concatenate([chunk.beta[..., None] * dresidual, chunk.do], -2)
    gradients = _Gradients(
        residual=dresidual,
        reads=dread @ transpose(state),
        writes=chunk.u @ transpose(dstate),
        across=jnp.sum(dstate * state, (-2, -1)),
    )
    return ready.across[..., None, None] * dstate + transpose(ready.reads) @ dread, gradients


def _pull(
    q: Float[Array, "chunks H C K"],
    k: Float[Array, "chunks H C K"],
    g: Float[Array, "chunks H C"],
    table: ChunkTable,
    chunk: _Backward,
    states: Float[Array, "chunks H K V"],
    d: _Gradients,
) -> _Rows:
    """Gradients of q, k, v, g and beta from those of the chunks."""
    ready, beta = chunk.chunk, chunk.beta
    between, enter, leave, across = head_decays(g, table)
    # [chunks, H, C, C] each
    gram = between * (k @ transpose(k))
    dscores = chunk.do @ transpose(chunk.u)
    dstrict = -jnp.tril(d.residual @ transpose(chunk.u), -1)
    # [chunks, H, C]
    dbeta = jnp.sum(d.residual * chunk.residual, -1) + jnp.sum(dstrict * gram, -1)

    # the gate of row j lies on every path from a row i < j to a row t >= j, from the start to t, and from i to the end
    size = table.chunk_size
    lower = jnp.tril(jnp.ones((size, size), g.dtype))
    # [chunks, H, C, C]
    paths = dscores * ready.scores + beta[..., None] * dstrict * gram
    # [chunks, H, 2C], then [chunks, H, C] twice
    read = jnp.sum(ready.reads * d.reads, -1)
    entering = read[..., :size] + read[..., size:]
    leaving = jnp.sum(ready.writes * d.writes, -1)
    # [chunks, H, C]
    dg = jnp.sum(jnp.tril(jnp.matmul(lower.T, paths, precision="highest"), -1), -1)
    dg += jnp.matmul(entering, lower, precision="highest") + (across * d.across)[..., None]
    dg += jnp.matmul(leaving, jnp.triu(lower.T, 1), precision="highest")

    # [chunks, H, C, C] each
    dscores = between * dscores
    dstrict = beta[..., None] * between * dstrict
    # [chunks, H, C, K] each
    dq = enter[..., None] * d.reads[..., size:, :] + dscores @ k
    dk = leave[..., None] * d.writes - enter[..., None] * d.reads[..., :size, :]
    dk = dk + transpose(dscores) @ q + (dstrict + transpose(dstrict)) @ k
    return dq, dk, beta[..., None] * d.residual, dg, dbeta


_FORM = ChunkForm(
    saved=lambda rows: (rows[0], rows[1], rows[3], rows[4]),  # q, k, g and beta
    prepare=_prepare,
    forward=_forward,
    resume=_resume,
    advance=lambda chunk, state: _advanced(chunk.chunk, state, chunk.u),
    backward=_backward,
)


def _beside(
    rows: DeltaRuleRows, read: Callable[[Float[Array, "N H K"]], Float[Array, "N H V"]]
) -> tuple[DeltaRuleRows, Float[Array, "N H V"]]:
    kept = jnp.exp(widened(rows.g))[..., None]
    return rows._replace(v=widened(rows.v) - read(kept * widened(rows.k))), read(kept * widened(rows.q))


def _flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    state, inside = 2.0 * key_dim * value_dim, 2.0 * chunk * (key_dim + value_dim)
    forward = 3 * state + 2 * inside + (2 + 1 / 3) * 2.0 * chunk**2
    backward = 7 * state + 5 * inside + 2 * 2.0 * chunk**2
    return forward, backward


DELTA_RULE = Primitive(
    name="delta rule",
    rows=DeltaRuleRows,
    state=matrix,
    step=step_by(delta_rule_transition),
    transition=delta_rule_transition,
    handover=by_columns,
    split=True,
    beside=_beside,
    chunked=delta_rule_chunked,
    kernels={
        "tpu": "pallas_kernels.tpu.delta_rule:delta_rule",
        "gpu": "pallas_kernels.gpu.delta_rule:delta_rule",
        "mosaic": "pallas_kernels.gpu.delta_rule_hopper:delta_rule",
    },
    inert=("g", "beta"),
    flops=_flops,
)
