"""A delta rule that reads with one key what it erases, and writes with another, over packed segments.

Per head, with a state S of shape [K, V] in float32 and a log decay for each head or for each key channel:

    S_t = diag(exp(g_t)) S_{t-1} + k_t (v_t - S_{t-1}^T a_t)^T;   o_t = scale * S_t^T q_t

So a reads the state before it decays, and k writes what is missing. It is diagonal plus rank one
(`mom_jax.ops.rank_one_decay`) with ``b = -k``, which halves the scores inside a chunk, and its kernels are that one's.

Kimi delta attention (arXiv 2510.26692, section 3) decays each channel and then applies the delta rule,
``S' = diag(e^g) S;  S = S' + k (beta (v - S'^T k))^T``: ``a = beta e^g k`` and values ``beta v``, by `kda_rows`.

Gated DeltaNet-2 (arXiv 2605.22791) has a strength for each key channel to erase with and one for each value channel
to write with, ``S = (I - k (erase k)^T) diag(e^g) S + k (write v)^T``: `gated_deltanet2_rows`.

Comba (arXiv 2506.02475) decays a head as a whole and corrects a read p of the state before that,
``S = e^g S + beta k (v - S^T p)^T``: `comba_rows`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunk_groups import ChunkForm, run_in_groups
from mom_jax.ops.chunks import from_chunks, to_chunks, transpose
from mom_jax.ops.decays import before_decay, channel_decays, decayed_scores, head_decays
from mom_jax.ops.handover import by_columns
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Transition, kernels_over, matrix, step_by
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY, RankOneDecayRows
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import unit_lower_inverse
from mom_jax.typing import Array, Float


class EraseAndWriteRows(NamedTuple):
    """Rows of a delta rule with two keys."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]  # writes
    v: Float[Array, "N H V"]
    g: Float[Array, "N H *K"]  # log decay of each head or channel, at most 0
    a: Float[Array, "N H K"]  # reads the state before it decays


def kda_rows(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    beta: Float[Array, "N H"],
) -> EraseAndWriteRows:
    """Rows of Kimi delta attention (module docstring): L2-normalised keys, log decays and write strengths."""
    wide_k, wide_v, g, beta = map(widened, (k, v, g, beta[..., None]))
    return EraseAndWriteRows(q, k, beta * wide_v, g, a=beta * jnp.exp(g) * wide_k)


def gated_deltanet2_rows(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    erase: Float[Array, "N H K"],
    write: Float[Array, "N H V"],
) -> EraseAndWriteRows:
    """Rows of Gated DeltaNet-2 (module docstring): L2-normalised keys, log decays, strengths of erasing and writing."""
    wide_k, wide_v, g, erase, write = map(widened, (k, v, g, erase, write))
    return EraseAndWriteRows(q, k, write * wide_v, g, a=jnp.exp(g) * erase * wide_k)


def comba_rows(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    p: Float[Array, "N H K"],
    g: Float[Array, "N H"],
    beta: Float[Array, "N H"],
) -> EraseAndWriteRows:
    """Rows of Comba (module docstring): L2-normalised keys, what reads the undecayed state, and write strengths."""
    wide_v, p, g, beta = map(widened, (v, p, g, beta[..., None]))
    return EraseAndWriteRows(q, k, beta * wide_v, g, a=beta * p)


def erase_and_write_transition(rows: EraseAndWriteRows) -> Transition:
    """What one token does to its states."""
    q, k, v, g, a = map(widened, rows)
    kept = _of_channels(jnp.exp(g), k)
    return Transition(kept * q, q, k, v, kept, a, -k)


def erase_and_write_chunked(
    rows: EraseAndWriteRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same recurrence, chunk by chunk (WY form).

    With (XY) the decayed products of rows inside a chunk, D their decays from its start and E to its end, for a before
    and for q after its row's own decay:

        U = (I + (AK))^-1 (V - D A S);   O = D Q S + (QK) U;   S' = diag(d) S + E K^T U

    The backward pass keeps U and the inverse: for each row and head, one more value row and C floats.
    """
    q, k, v, g, a = (to_chunks(x, table.chunk_size) for x in rows)
    rows_in_chunks = (scale * q, k, a, g), v
    o, state = run_in_groups(_FORM, ERASE_AND_WRITE.state_of(rows), rows_in_chunks, table, state)
    return from_chunks(o).astype(rows.v.dtype), state


def as_rank_one(rows: EraseAndWriteRows) -> RankOneDecayRows:
    """The same as rows of diagonal plus rank one, as kernels take them."""
    return RankOneDecayRows(rows.q, rows.k, rows.v, _of_channels(rows.g, rows.k), a=rows.a, b=-rows.k)


def _of_channels(x: Float[Array, "N H *K"], k: Float[Array, "N H K"]) -> Float[Array, "N H K"]:
    return x if x.ndim == k.ndim else jnp.broadcast_to(x[..., None], k.shape)


# q, k, a and g of a group of chunks; and with them the values
_Reads = tuple[
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C K"],
    Float[Array, "chunks H C *K"],
]
_Rows = tuple[_Reads, Float[Array, "chunks H C V"]]


class _Chunk(NamedTuple):
    """The part of a chunk that depends on neither state nor values: [H, ...], or [chunks, H, ...] for a group."""

    ak: Float[Array, "*chunks H C C"]  # decayed products a_t.k_i, below the diagonal
    qk: Float[Array, "*chunks H C C"]  # lower triangle
    reads: Float[Array, "*chunks H 2*C K"]  # what reads the incoming state: -a, then q
    writes: Float[Array, "*chunks H C K"]  # what reaches the chunk's end
    across: Float[Array, "*chunks H #K"]  # decay over the whole chunk


class _Forward(NamedTuple):
    chunk: _Chunk
    inside: Float[Array, "*chunks H 2*C C"]  # from what is missing to U, and to its part of O
    v: Float[Array, "*chunks H C V"]


class _Backward(NamedTuple):
    chunk: _Chunk
    inverse: Float[Array, "*chunks H C C"]
    u: Float[Array, "*chunks H C V"]
    do: Float[Array, "*chunks H C V"]
    du: Float[Array, "*chunks H C V"]  # through the outputs of the chunk itself


class _Gradients(NamedTuple):
    """The gradients of one chunk, or of several, stacked."""

    leaving: Float[Array, "*chunks H K V"]  # of the state behind the chunk
    read: Float[Array, "*chunks H 2*C V"]  # of what -a and q read; the first is that of the values


def _chunk(rows: _Reads, table: ChunkTable) -> _Chunk:
    return _by_head(rows, table) if rows[-1].ndim == 3 else _by_channel(rows, table)


def _by_head(rows: _Reads, table: ChunkTable) -> _Chunk:
    q, k, a, g = rows
    between, enter, leave, across = head_decays(g, table)
    between_before, enter_before = before_decay(between, enter, table)
    # [chunks, H, 2C, C]
    products = jnp.concatenate([a, q], -2) @ transpose(k)
    return _Chunk(
        ak=between_before * products[..., : table.chunk_size, :],
        qk=between * products[..., table.chunk_size :, :],
        reads=jnp.concatenate([-enter_before[..., None] * a, enter[..., None] * q], -2),
        writes=leave[..., None] * k,
        across=across[..., None],
    )


def _by_channel(rows: _Reads, table: ChunkTable) -> _Chunk:
    q, k, a, g = rows
    decays = channel_decays(g, table)
    # [chunks, H, C, K]: q reads after its row's decay, a before it
    decayed = jnp.exp(g) * q
    itself = jnp.eye(table.chunk_size, dtype=q.dtype) * jnp.sum(q * k, -1, keepdims=True)
    return _Chunk(
        ak=decayed_scores(a, k, decays, table),
        qk=decayed_scores(decayed, k, decays, table) + itself,
        reads=jnp.concatenate([-decays.enter * a, decays.enter * decayed], -2),
        writes=decays.leave * k,
        across=decays.across,
    )


def _prepare(rows: _Rows, table: ChunkTable) -> tuple[_Forward, Float[Array, "chunks H C C"]]:
    reads, v = rows
    chunk = _chunk(reads, table)
    # [chunks, H, C, C]
    inverse = unit_lower_inverse(chunk.ak)
    return _Forward(chunk, jnp.concatenate([inverse, chunk.qk @ inverse], -2), v), inverse


def _forward(
    chunk: _Forward, state: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], Float[Array, "H C V"], Float[Array, "H C V"]]:
    size = chunk.v.shape[-2]
    # [H, 2C, V]
    read = chunk.chunk.reads @ state
    # [H, 2C, V]: U, and its part of O
    inner = chunk.inside @ (chunk.v + read[..., :size, :])
    u, o = inner[..., :size, :], inner[..., size:, :] + read[..., size:, :]
    return _advanced(chunk.chunk, state, u), o, u


def _advanced(chunk: _Chunk, state: Float[Array, "H K V"], u: Float[Array, "H C V"]) -> Float[Array, "H K V"]:
    return chunk.across[..., None] * state + transpose(chunk.writes) @ u


def _resume(
    reads: _Reads,
    table: ChunkTable,
    kept: tuple[Float[Array, "chunks H C C"], Float[Array, "chunks H C V"]],
    do: Float[Array, "chunks H C V"],
) -> tuple[_Backward, Callable[..., _Rows]]:
    inverse, u = kept
    chunk, pull = jax.vjp(lambda reads: _chunk(reads, table), reads)
    return _Backward(chunk, inverse, u, do, transpose(chunk.qk) @ do), lambda *x: _pull(pull, *x)


def _backward(
    chunk: _Backward, state: Float[Array, "H K V"], dstate: Float[Array, "H K V"]
) -> tuple[Float[Array, "H K V"], _Gradients]:
    ready = chunk.chunk
    # [H, C, V]
    dmissing = transpose(chunk.inverse) @ (chunk.du + ready.writes @ dstate)
    # [H, 2C, V]
    both = jnp.concatenate([dmissing, chunk.do], -2)
    before = ready.across[..., None] * dstate + transpose(ready.reads) @ both
    return before, _Gradients(leaving=dstate, read=both)


def _pull(
    pull: Callable[[_Chunk], tuple[_Reads]], chunk: _Backward, states: Float[Array, "chunks H K V"], d: _Gradients
) -> _Rows:
    """Gradients of the rows and values [chunks, H, C, ...] from those of the chunks."""
    u, size, ready = chunk.u, chunk.u.shape[-2], chunk.chunk
    dmissing, through = d.read[..., :size, :], jnp.sum(d.leaving * states, -1)
    (drows,) = pull(
        _Chunk(
            ak=-dmissing @ transpose(u),
            qk=chunk.do @ transpose(u),
            reads=d.read @ transpose(states),
            writes=u @ transpose(d.leaving),
            across=through if ready.across.shape == through.shape else jnp.sum(through, -1, keepdims=True),
        )
    )
    return drows, dmissing


_FORM = ChunkForm(
    saved=lambda rows: rows[0],
    prepare=_prepare,
    forward=_forward,
    resume=_resume,
    advance=lambda chunk, state: _advanced(chunk.chunk, state, chunk.u),
    backward=_backward,
)


def _beside(
    rows: EraseAndWriteRows, read: Callable[[Float[Array, "N H K"]], Float[Array, "N H V"]]
) -> tuple[EraseAndWriteRows, Float[Array, "N H V"]]:
    kept = _of_channels(jnp.exp(widened(rows.g)), rows.k)
    return rows._replace(v=widened(rows.v) - read(widened(rows.a))), read(kept * widened(rows.q))


def erase_and_write_flops(chunk: int, key_dim: int, value_dim: int, *, by_head: bool = False) -> tuple[float, float]:
    """As of a `Primitive`, with a decay for each channel or head: cuts of decayed scores form half of them."""
    state, values, square = 2.0 * key_dim * value_dim, 2.0 * chunk * value_dim, 2.0 * chunk**2
    scores, decays = (4.0 * chunk * key_dim, square) if by_head else (2.0 * chunk * key_dim, 0.0)
    forward = 3 * state + 2 * values + scores + (1 + 1 / 3) * square + decays
    backward = 7 * state + 4 * values + 3 * scores + 2 * decays
    return forward, backward


ERASE_AND_WRITE = Primitive(
    name="erase and write",
    rows=EraseAndWriteRows,
    state=matrix,
    step=step_by(erase_and_write_transition),
    transition=erase_and_write_transition,
    handover=by_columns,
    split=True,
    beside=_beside,
    chunked=erase_and_write_chunked,
    kernels=kernels_over(RANK_ONE_DECAY, lambda form, rows, *rest: form(as_rank_one(rows), *rest)),
    inert=("v", "g", "a"),
    flops=erase_and_write_flops,
)
