"""The gated delta rule over packed segments (Gated DeltaNet, arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

``g = 0`` is the plain delta rule (DeltaNet, arXiv 2406.06484). Keys are expected L2-normalised.

Three forms of the same function: `delta_rule_step` (one token for each row, decoding),
`delta_rule_scan` (token by token, the oracle) and `delta_rule_chunked` (chunk-parallel, with
its own backward pass). All take packed rows ordered by a `ChunkTable`. Padding rows must have
``beta = 0`` and ``g = 0``; then they neither write nor decay.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import select
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import unit_lower_inverse
from mom_jax.typing import Array, Float


def delta_rule_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"],
    beta: Float[Array, "N H"],
    state: Float[Array, "N H K V"],
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, value, g, beta = (x.astype(jnp.float32) for x in (q, k, v, g, beta))
    state = jnp.exp(g)[..., None, None] * state
    error = beta[..., None] * (value - jnp.einsum("nhkv,nhk->nhv", state, k))
    state = state + k[..., None] * error[..., None, :]
    return (scale * jnp.einsum("nhkv,nhk->nhv", state, q)).astype(v.dtype), state


def delta_rule_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"],
    beta: Float[Array, "N H"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The recurrence exactly as written, one row after the other.

    Returns outputs (``v.dtype``) and the state of every segment after its last row; empty
    segments keep their initial state. Without an initial state segments start from 0, and no
    state is returned.
    """
    rows = q.shape[0]
    begins = jnp.zeros(rows, bool).at[:: table.chunk_size].set(table.first)
    segment = jnp.repeat(table.segment, table.chunk_size)
    forget = jnp.zeros(rows, bool) if table.reset is None else table.reset

    def body(carry, row):
        state, stored = carry
        q_t, k_t, v_t, g_t, beta_t, begins_t, segment_t, forget_t = row
        state = jnp.where(forget_t, 0.0, _load(stored, state, segment_t, begins_t))
        o_t, state = delta_rule_step(*(x[None] for x in (q_t, k_t, v_t, g_t, beta_t, state)), scale)
        return (state[0], _store(stored, state[0], segment_t, True)), o_t[0]

    xs = (q, k, v, g, beta, begins, segment, forget)
    (_, stored), o = jax.lax.scan(body, _carry(initial_state, (*k.shape[1:], v.shape[-1])), xs)
    return o, _final(stored)


class _Chunks(NamedTuple):
    """Everything of a chunk that does not depend on the state; [chunks, H, ...], float32."""

    reads: Array  # [2C, K] what reads the incoming state: -e^G k for the residuals, e^G q for the outputs
    writes: Array  # [C, K] e^(G_C - G) k
    across: Array  # [] decay over the whole chunk, e^(G_C)
    inverse: Array  # [C, C] (I + A)^-1
    scores: Array  # [C, C] decayed lower triangle of q k^T


def delta_rule_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"],
    beta: Float[Array, "N H"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same function chunk by chunk (WY form, arXiv 2412.06464 section 3.3).

    Inside a chunk with incoming state S and G the running sum of g:

        A_ti = beta_t e^(G_t - G_i) k_t.k_i  (i < t);    R = V - e^G (K S);    U = (I + A)^-1 (beta R)
        O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) U;    S' = e^(G_C) S + (e^(G_C - G) K)^T U

    The backward pass keeps the inputs, R and the inverse: as much as one more value row and
    C floats for each row and head. The states at chunk borders, K*V floats for C rows, are
    recomputed with one matmul each, so they exist for one layer at a time.
    """
    q, k, value, g, beta = (_to_chunks(x, table.chunk_size) for x in (q, k, v, g, beta))
    o, final = _chunked(scale * q, k, value, g, beta, table, initial_state)
    return _from_chunks(o).astype(v.dtype), final


@jax.custom_vjp
def _chunked(q, k, v, g, beta, table, initial_state) -> tuple[Array, Array | None]:
    return _chunked_fwd(q, k, v, g, beta, table, initial_state)[0]


def _chunked_fwd(q, k, v, g, beta, table, initial_state):
    chunks = _prepare(q, k, g, beta, table)
    to_update = chunks.inverse * beta[..., None, :]
    inside = jnp.concatenate([to_update, chunks.scores @ to_update], -2)
    size = table.chunk_size

    def body(carry, xs):
        state, stored = carry
        chunk, inside_c, value, first, segment, last = xs
        state = _load(stored, state, segment, first)
        read = chunk.reads @ state
        residual = value + read[..., :size, :]
        own = inside_c @ residual
        state = _advance(chunk, state, own[..., :size, :])
        return (state, _store(stored, state, segment, last)), (own[..., size:, :] + read[..., size:, :], residual)

    xs = (chunks, inside, v, table.first, table.segment, table.last)
    (_, stored), (o, residual) = jax.lax.scan(body, _carry(initial_state, _state_shape(k, v)), xs)
    return (o, _final(stored)), (q, k, g, beta, table, initial_state, residual, chunks.inverse)


def _chunked_bwd(residuals, cotangents):
    q, k, g, beta, table, initial_state, residual, inverse = residuals
    do, dfinal = cotangents
    chunks = _prepare(q, k, g, beta, table, inverse)
    update = inverse @ (beta[..., None] * residual)
    states = _chunk_states(chunks, update, table, initial_state)
    dupdate = _transpose(chunks.scores) @ do

    def body(carry, xs):
        dstate, dstored = carry
        chunk, beta_c, state, update_c, do_c, du, first, segment, last = xs
        dstate = _load(dstored, dstate, segment, last)
        dwritten = _transpose(chunk.inverse) @ (du + chunk.writes @ dstate)
        dread = jnp.concatenate([beta_c[..., None] * dwritten, do_c], -2)
        dreads = dread @ _transpose(state)
        dwrites = update_c @ _transpose(dstate)
        dacross = jnp.sum(dstate * state, (-2, -1))
        dstate = chunk.across[..., None, None] * dstate + _transpose(chunk.reads) @ dread
        return (dstate, _store(dstored, dstate, segment, first)), (dwritten, dreads, dwrites, dacross)

    xs = (chunks, beta, states, update, do, dupdate, table.first, table.segment, table.last)
    init = _carry(dfinal, _state_shape(k, residual))
    (_, dstored), (dwritten, dreads, dwrites, dacross) = jax.lax.scan(body, init, xs, reverse=True)
    dq, dk, dgram, dg = _inner_gradients(q, k, g, beta, table, chunks, update, do, dwritten, dreads, dwrites, dacross)
    dbeta = jnp.sum(dwritten * residual, -1) + dgram
    return dq, dk, beta[..., None] * dwritten, dg, dbeta, None, _final(dstored)


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def _to_chunks(x, chunk_size):
    """[N, H, ...] -> float32 [chunks, H, C, ...]"""
    x = x.reshape(-1, chunk_size, *x.shape[1:])
    return jnp.moveaxis(x, 2, 1).astype(jnp.float32)


def _from_chunks(x):
    """[chunks, H, C, ...] -> [N, H, ...]"""
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


def _state_shape(k, v):
    return k.shape[1], k.shape[-1], v.shape[-1]


def _carry(stored, shape):
    """A state to start from, and the states of all segments with one more slot that takes what nobody reads."""
    spare = None if stored is None else jnp.pad(stored.astype(jnp.float32), ((0, 1), (0, 0), (0, 0), (0, 0)))
    return jnp.zeros(shape, jnp.float32), spare


def _final(stored):
    return None if stored is None else stored[:-1]


def _load(stored, state, segment, when):
    """The state of ``segment`` where ``when`` holds, else the running one."""
    return jnp.where(when, 0.0 if stored is None else stored[segment], state)


def _store(stored, state, segment, when):
    """Writes ``state`` in place where ``when`` holds, else into the spare slot."""
    return None if stored is None else stored.at[jnp.where(when, segment, stored.shape[0] - 1)].set(state)


def _advance(chunk, state, update):
    return chunk.across[..., None, None] * state + _transpose(chunk.writes) @ update


def _chunk_states(chunks, update, table, initial_state):
    """The state that enters every chunk, [chunks, H, K, V]."""

    def body(carry, xs):
        state, stored = carry
        chunk, update_c, first, segment = xs
        state = _load(stored, state, segment, first)
        return (_advance(chunk, state, update_c), stored), state

    xs = (chunks, update, table.first, table.segment)
    return jax.lax.scan(body, _carry(initial_state, _state_shape(chunks.writes, update)), xs)[1]


def _decays(g, table):
    """Decays inside chunks from log gates [chunks, H, C]; a document's start cuts every path across it.

    Returns the decay between rows [chunks, H, C, C] (lower triangle), from the start, to the
    end and across. Sums run over just the rows between two places: a difference of two running
    sums would lose small gates beside very negative ones.
    """
    size = table.chunk_size
    between = jnp.tril(jnp.ones((size, size), bool))
    lower = between.astype(g.dtype)
    passed = jnp.matmul(lower, g[..., :, None] * jnp.tril(lower, -1), precision="highest")  # sum over i < j <= t
    enter = leave = across = None
    if table.reset is not None:
        document = jnp.cumsum(table.reset.reshape(-1, 1, size), -1, dtype=jnp.int32)
        between = between & (document[..., :, None] == document[..., None, :])
        enter, leave, across = document == 0, document == document[..., -1:], document[..., -1] == 0
    total = jnp.cumsum(g, -1)
    return (
        jnp.exp(jnp.where(between, passed, -jnp.inf)),
        _masked(jnp.exp(total), enter),
        _masked(jnp.exp(passed[..., -1, :]), leave),
        _masked(jnp.exp(total[..., -1]), across),
    )


def _masked(x, keep):
    return x if keep is None else jnp.where(keep, x, 0.0)


def _prepare(q, k, g, beta, table, inverse=None):
    between, enter, leave, across = _decays(g, table)
    if inverse is None:
        inverse = unit_lower_inverse(jnp.tril(beta[..., None] * between * (k @ _transpose(k)), -1))
    reads = jnp.concatenate([-enter[..., None] * k, enter[..., None] * q], -2)
    return _Chunks(reads, leave[..., None] * k, across, inverse, between * (q @ _transpose(k)))


def _inner_gradients(q, k, g, beta, table, chunks, update, do, dwritten, dreads, dwrites, dacross):
    """Gradients of q, k and g, and beta's share through A, once those of `_Chunks` are known."""
    between, enter, leave, across = _decays(g, table)
    gram = between * (k @ _transpose(k))
    dscores = do @ _transpose(update)
    dstrict = -jnp.tril(dwritten @ _transpose(update), -1)
    dgram = jnp.sum(dstrict * gram, -1)

    # the gate of row j lies on every path from a row i < j to a row t >= j, from the start to t, and from i to the end
    size = table.chunk_size
    lower = jnp.tril(jnp.ones((size, size), g.dtype))
    paths = dscores * chunks.scores + beta[..., None] * dstrict * gram
    read = jnp.sum(chunks.reads * dreads, -1)
    entering = read[..., :size] + read[..., size:]
    leaving = jnp.sum(chunks.writes * dwrites, -1)
    dg = jnp.sum(jnp.tril(jnp.matmul(lower.T, paths, precision="highest"), -1), -1)
    dg += jnp.matmul(entering, lower, precision="highest") + (across * dacross)[..., None]
    dg += jnp.matmul(leaving, jnp.triu(lower.T, 1), precision="highest")

    dscores = between * dscores
    dstrict = beta[..., None] * between * dstrict
    dq = enter[..., None] * dreads[..., size:, :] + dscores @ k
    dk = leave[..., None] * dwrites - enter[..., None] * dreads[..., :size, :]
    dk = dk + _transpose(dscores) @ q + (dstrict + _transpose(dstrict)) @ k
    return dq, dk, dgram, dg


def chunk_rows(time: int, key_dim: int) -> int:
    """Rows of a chunk: small keys gain from short chunks, and short rows need no long ones."""
    return min(32 if key_dim <= 64 else 64, 1 << (time - 1).bit_length())


_IMPLEMENTATIONS = {"reference": delta_rule_scan, "xla": delta_rule_chunked}


def gated_delta_rule(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"],
    beta: Float[Array, "N H"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """Gated delta rule over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows; keys L2-normalised.
        g: log decay, at most 0; 0 on padding rows.
        beta: write strength; 0 on padding rows.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        scale: of the output, K^-0.5 if None.
        impl: ``auto``, ``reference`` (token by token) or ``xla`` (chunk-parallel).

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: unknown ``impl``.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return select(impl, _IMPLEMENTATIONS, auto="xla")(q, k, v, g, beta, table, initial_state, scale)
