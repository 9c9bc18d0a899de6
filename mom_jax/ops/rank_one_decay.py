"""A memory whose transition is diagonal plus rank one (DPLR), over packed segments.

Per head, with a state S of shape [K, V] in float32:

    S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

RWKV7 (arXiv 2503.14456, section 4) takes ``a = -kk`` and ``b = kk * rate`` with normalised keys kk. Where ``b = -k``,
`mom_jax.ops.erase_and_write` does with half of the scores.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunk_groups import ChunkForm, run_in_groups
from mom_jax.ops.chunks import from_chunks, to_chunks, transpose
from mom_jax.ops.decays import channel_decays, decayed_scores
from mom_jax.ops.handover import by_columns
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Transition, matrix, step_by
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import unit_lower_inverse
from mom_jax.typing import Array, Float


class RankOneDecayRows(NamedTuple):
    """Rows of diagonal plus rank one."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    g: Float[Array, "N H K"]  # log decay, at most 0
    a: Float[Array, "N H K"]  # reads the state before it decays
    b: Float[Array, "N H K"]


def rank_one_decay_transition(rows: RankOneDecayRows) -> Transition:
    """What one token does to its states."""
    q, k, v, g, a, b = map(widened, rows)
    kept = jnp.exp(g)
    return Transition(kept * q, q, k, v, kept, a, b)


def rank_one_decay_chunked(
    rows: RankOneDecayRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same recurrence, chunk by chunk (WY form with decays for each channel).

    A token reads ``u_t = S_{t-1}^T a_t`` and writes ``b_t u_t^T + k_t v_t^T``. With (XY) the decayed
    products of rows inside a chunk, D their decays from its start and E to its end:

        U = (I - (AB))^-1 (D A S + (AK) V);   O = D Q S + (QB) U + (QK) V;   S' = diag(d) S + E B^T U + E K^T V

    The backward pass keeps U and the inverse: for each row and head, one more value row and C floats.
    """
    q, k, v, g, a, b = (to_chunks(x, table.chunk_size) for x in rows)
    rows_in_chunks = (scale * q, k, a, b, g), v
    o, state = run_in_groups(_FORM, RANK_ONE_DECAY.state_of(rows), rows_in_chunks, table, state)
    return from_chunks(o).astype(rows.v.dtype), state


# q, k, a, b and g of a group of chunks; and with them the values
_Reads = tuple[
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
]
_Rows = tuple[_Reads, Float[Array, "chunks H C V"]]


class _Chunk(NamedTuple):
    """The part of a chunk that depends on neither state nor values: [H, ...], or [chunks, H, ...] for a group."""

    ab: Float[Array, "*chunks H C C"]  # decayed products a_t.b_i, below the diagonal
    ak: Float[Array, "*chunks H C C"]  # below the diagonal
    qb: Float[Array, "*chunks H C C"]  # lower triangle
    qk: Float[Array, "*chunks H C C"]
    reads: Float[Array, "*chunks H 2*C K"]  # what reads the incoming state: a, then q
    writes: Float[Array, "*chunks H 2*C K"]  # what reaches the chunk's end: b, then k
    across: Float[Array, "*chunks H K"]  # decay over the whole chunk


class _Forward(NamedTuple):
    chunk: _Chunk
    inside: Float[Array, "*chunks H 2*C C"]  # from what a reads to U, and to its part of O
    read_v: Float[Array, "*chunks H 2*C V"]  # what a and q read of the chunk's own values
    v: Float[Array, "*chunks H C V"]


class _Backward(NamedTuple):
    chunk: _Chunk
    inverse: Float[Array, "*chunks H C C"]
    u: Float[Array, "*chunks H C V"]
    v: Float[Array, "*chunks H C V"]
    do: Float[Array, "*chunks H C V"]
    du: Float[Array, "*chunks H C V"]  # through the outputs of the chunk itself


class _Gradients(NamedTuple):
    """The gradients of one chunk, or of several, stacked."""

    leaving: Float[Array, "*chunks H K V"]  # of the state behind the chunk
    read: Float[Array, "*chunks H 2*C V"]  # of what a and q read


def _chunk(rows: _Reads, table: ChunkTable) -> _Chunk:
    q, k, a, b, g = rows
    decays = channel_decays(g, table)
    # [chunks, H, C, K]: q reads after its row's decay, a before it
    decayed = jnp.exp(g) * q
    diagonal = jnp.eye(table.chunk_size, dtype=q.dtype)
    return _Chunk(
        reads=jnp.concatenate([decays.enter * a, decays.enter * decayed], -2),
        writes=jnp.concatenate([decays.leave * b, decays.leave * k], -2),
        across=decays.across,
        ab=decayed_scores(a, b, decays, table),
        ak=decayed_scores(a, k, decays, table),
        qb=decayed_scores(decayed, b, decays, table) + diagonal * jnp.sum(q * b, -1, keepdims=True),
        qk=decayed_scores(decayed, k, decays, table) + diagonal * jnp.sum(q * k, -1, keepdims=True),
    )


def _prepare(rows: _Rows, table: ChunkTable) -> tuple[_Forward, Float[Array, "chunks H C C"]]:
    reads, v = rows
    chunk = _chunk(reads, table)
    # [chunks, H, C, C]
    inverse = unit_lower_inverse(-chunk.ab)
    # [chunks, H, 2C, C]
    inside = jnp.concatenate([inverse, chunk.qb @ inverse], -2)
    # [chunks, H, 2C, V]
    read_v = jnp.concatenate([chunk.ak, chunk.qk], -2) @ v
    return _Forward(chunk, inside, read_v, v), inverse


def _forward(
    chunk: _Forward, state: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], Float[Array, "H C V"], Float[Array, "H C V"]]:
    size = chunk.v.shape[-2]
    # [H, 2C, V]
    read = chunk.chunk.reads @ state + chunk.read_v
    # [H, 2C, V]: U, and its part of O
    inner = chunk.inside @ read[..., :size, :]
    u, o = inner[..., :size, :], inner[..., size:, :] + read[..., size:, :]
    return _advanced(chunk.chunk, state, u, chunk.v), o, u


def _advanced(
    chunk: _Chunk, state: Float[Array, "H K V"], u: Float[Array, "H C V"], v: Float[Array, "H C V"]
) -> Float[Array, "H K V"]:
    return chunk.across[..., None] * state + transpose(chunk.writes) @ jnp.concatenate([u, v], -2)


def _resume(
    rows: _Rows,
    table: ChunkTable,
    kept: tuple[Float[Array, "chunks H C C"], Float[Array, "chunks H C V"]],
    do: Float[Array, "chunks H C V"],
) -> tuple[_Backward, Callable[..., _Rows]]:
    (reads, v), (inverse, u) = rows, kept
    chunk, pull = jax.vjp(lambda reads: _chunk(reads, table), reads)
    return _Backward(chunk, inverse, u, v, do, transpose(chunk.qb) @ do), lambda *x: _pull(pull, *x)


def _backward(
    chunk: _Backward, state: Float[Array, "H K V"], dstate: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], _Gradients]:
    ready, size = chunk.chunk, chunk.u.shape[-2]
    # [H, C, V]
    dread = transpose(chunk.inverse) @ (chunk.du + ready.writes[..., :size, :] @ dstate)
    # [H, 2C, V]
    both = jnp.concatenate([dread, chunk.do], -2)
    before = ready.across[..., None] * dstate + transpose(ready.reads) @ both
    return before, _Gradients(leaving=dstate, read=both)


def _pull(
    pull: Callable[[_Chunk], tuple[_Reads]], chunk: _Backward, states: Float[Array, "chunks H K V"], d: _Gradients
) -> _Rows:
    """Gradients of the rows and values [chunks, H, C, ...] from those of the chunks."""
    ready, u, v, do, size = chunk.chunk, chunk.u, chunk.v, chunk.do, chunk.u.shape[-2]
    # [chunks, H, C, V]
    dread = d.read[..., :size, :]
    (drows,) = pull(
        _Chunk(
            reads=d.read @ transpose(states),
            writes=jnp.concatenate([u, v], -2) @ transpose(d.leaving),
            across=jnp.sum(d.leaving * states, -1),
            ab=dread @ transpose(u),
            ak=dread @ transpose(v),
            qb=do @ transpose(u),
            qk=do @ transpose(v),
        )
    )
    # [chunks, H, C, V]
    dv = ready.writes[..., size:, :] @ d.leaving + transpose(ready.ak) @ dread + transpose(ready.qk) @ do
    return drows, dv


_FORM = ChunkForm(
    saved=lambda rows: rows,
    prepare=_prepare,
    forward=_forward,
    resume=_resume,
    advance=lambda chunk, state: _advanced(chunk.chunk, state, chunk.u, chunk.v),
    backward=_backward,
)


def _flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """The cuts of decayed scores form half of them."""
    state, values, scores = 2.0 * key_dim * value_dim, 2.0 * chunk * value_dim, 4 * 2.0 * chunk * key_dim / 2
    forward = 4 * state + 4 * values + scores + (1 + 1 / 3) * 2.0 * chunk**2
    backward = 10 * state + 8 * values + 3 * scores
    return forward, backward


RANK_ONE_DECAY = Primitive(
    name="rank one decay",
    rows=RankOneDecayRows,
    state=matrix,
    step=step_by(rank_one_decay_transition),
    transition=rank_one_decay_transition,
    handover=by_columns,
    split=True,
    chunked=rank_one_decay_chunked,
    kernels={
        "tpu": "pallas_kernels.tpu.rank_one_decay:rank_one_decay",
        "gpu": "pallas_kernels.gpu.rank_one_decay:rank_one_decay",
    },
    inert=("v", "g", "b"),
    flops=_flops,
)
