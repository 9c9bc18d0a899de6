"""A memory whose transition is diagonal plus rank one, over packed segments.

Per head, with a state S of shape [K, V] in float32:

    S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

RWKV7 (arXiv 2503.14456, section 4) takes ``a = -kk`` and ``b = kk * rate`` with normalised keys kk.

Kimi delta attention (arXiv 2510.26692, section 3) decays each channel and then applies the delta
rule, ``S' = diag(e^g) S;  S = S' + k (beta (v - S'^T k))^T``. Multiplied out, its transition is
``diag(e^g) - beta k (e^g k)^T``: the same primitive with ``a = e^g k``, ``b = -beta k`` and values
``beta v``. `kda` is that.

`rank_one_decay_step`, `rank_one_decay_scan` and `rank_one_decay_chunked` are three forms of one
function. On padding rows g and v (or k) and a (or b) must be 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import (
    final_states,
    from_chunks,
    from_groups,
    initial_carry,
    load,
    matrix_state,
    scan_rows,
    states_before,
    store,
    to_chunks,
    to_groups,
    transpose,
)
from mom_jax.ops.decays import channel_decays, decayed_scores
from mom_jax.ops.dispatch import select
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import unit_lower_inverse
from mom_jax.typing import Array, Float


def rank_one_decay_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    a: Float[Array, "N H K"],
    b: Float[Array, "N H K"],
    g: Float[Array, "N H K"],
    state: Float[Array, "N H K V"],
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, value, a, b, g = (x.astype(jnp.float32) for x in (q, k, v, a, b, g))
    read = jnp.einsum("nhkv,nhk->nhv", state, a)
    state = jnp.exp(g)[..., None] * state + b[..., None] * read[..., None, :] + k[..., None] * value[..., None, :]
    return (scale * jnp.einsum("nhkv,nhk->nhv", state, q)).astype(v.dtype), state


def rank_one_decay_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    a: Float[Array, "N H K"],
    b: Float[Array, "N H K"],
    g: Float[Array, "N H K"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The recurrence exactly as written, one row after the other; arguments as `rank_one_decay`."""
    step = functools.partial(rank_one_decay_step, scale=scale)
    return scan_rows(step, (q, k, v, a, b, g), table, initial_state, matrix_state(k, v))


class _Chunks(NamedTuple):
    """Everything of a chunk that does not depend on the state; [chunks, H, ...], float32."""

    reads: Array  # [2C, K] what reads the incoming state: a, then q
    writes: Array  # [2C, K] what reaches the chunk's end: b, then k
    across: Array  # [K] decay over the whole chunk
    ab: Array  # [C, C] decayed products a_t.b_i, below the diagonal
    ak: Array  # below the diagonal
    qb: Array  # lower triangle
    qk: Array


def rank_one_decay_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    a: Float[Array, "N H K"],
    b: Float[Array, "N H K"],
    g: Float[Array, "N H K"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same function chunk by chunk (WY form with decays for each channel).

    A token reads ``u_t = S_{t-1}^T a_t`` and writes ``b_t u_t^T + k_t v_t^T``. With (XY) the decayed
    products of rows inside a chunk, D their decays from its start and E to its end:

        U = (I - (AB))^-1 (D A S + (AK) V);   O = D Q S + (QB) U + (QK) V;   S' = diag(d) S + E B^T U + E K^T V

    Chunks are worked off in groups, as those of the delta rule. The backward pass keeps the inputs, U and the
    inverse, as much as one more value row and C floats for each row and head, and one state for each group.
    """
    q, k, value, a, b, g = (to_chunks(x, table.chunk_size) for x in (q, k, v, a, b, g))
    o, final = _chunked((scale * q, k, a, b, g), value, table, initial_state)
    return from_chunks(o).astype(v.dtype), final


@jax.custom_vjp
def _chunked(rows, v, table, initial_state):
    return _chunked_fwd(rows, v, table, initial_state)[0]


def _chunked_fwd(rows, v, table, initial_state):
    carried = initial_carry(initial_state, matrix_state(rows[0], v))
    (_, stored), (o, *kept) = jax.lax.scan(_forward_group, carried, to_groups((rows, v), table))
    return (from_groups(o, table), final_states(stored)), (rows, v, table, initial_state, kept)


def _forward_group(carried, group):
    """Outputs of some chunks, and what their backward pass keeps: U, the inverses, the state before the first."""
    (rows, v), table = group
    chunks = _prepare(rows, table)
    inverse = unit_lower_inverse(-chunks.ab)
    inside = jnp.concatenate([inverse, chunks.qb @ inverse], -2)
    from_values = jnp.concatenate([chunks.ak, chunks.qk], -2) @ v
    size = table.chunk_size

    def body(carried, xs):
        state, stored = carried
        chunk, inside_c, known, value, first, segment, last = xs
        state = load(stored, state, segment, first)
        read = chunk.reads @ state + known
        own = inside_c @ read[..., :size, :]
        u, o = own[..., :size, :], own[..., size:, :] + read[..., size:, :]
        state = _advance(chunk, state, jnp.concatenate([u, value], -2))
        return (state, store(stored, state, segment, last)), (o, u)

    xs = (chunks, inside, from_values, v, table.first, table.segment, table.last)
    after, (o, u) = jax.lax.scan(body, carried, xs)
    return after, (o, u, inverse, carried[0])


def _chunked_bwd(residuals, cotangents):
    rows, v, table, initial_state, kept = residuals
    do, dfinal = cotangents
    shape = matrix_state(rows[0], v)
    _, start = initial_carry(initial_state, shape)
    groups = (*to_groups((rows, v, do), table), *kept)
    body = functools.partial(_backward_group, start)
    (_, dstored), gradients = jax.lax.scan(body, initial_carry(dfinal, shape), groups, reverse=True)
    return *from_groups(gradients, table), None, final_states(dstored)


def _backward_group(start, carried, group):
    """Gradients of the rows and values of some chunks."""
    (rows, v, do), table, u, inverse, entering = group
    chunks, pull = jax.vjp(lambda rows: _prepare(rows, table), rows)
    written = jnp.concatenate([u, v], -2)
    states = states_before(_advance, start, entering, (chunks, written), table)
    size = table.chunk_size

    def body(carried, xs):
        dstate, dstored = carried
        chunk, inverse_c, do_c, du, first, segment, last = xs
        leaving = load(dstored, dstate, segment, last)
        dread = transpose(inverse_c) @ (du + chunk.writes[..., :size, :] @ leaving)
        both = jnp.concatenate([dread, do_c], -2)
        dstate = chunk.across[..., None] * leaving + transpose(chunk.reads) @ both
        return (dstate, store(dstored, dstate, segment, first)), (leaving, both)

    xs = (chunks, inverse, do, transpose(chunks.qb) @ do, table.first, table.segment, table.last)
    carried, (leaving, both) = jax.lax.scan(body, carried, xs, reverse=True)
    dread = both[..., :size, :]
    (drows,) = pull(
        _Chunks(
            reads=both @ transpose(states),
            writes=written @ transpose(leaving),
            across=jnp.sum(leaving * states, -1),
            ab=dread @ transpose(u),
            ak=dread @ transpose(v),
            qb=do @ transpose(u),
            qk=do @ transpose(v),
        )
    )
    dv = chunks.writes[..., size:, :] @ leaving + transpose(chunks.ak) @ dread + transpose(chunks.qk) @ do
    return carried, (drows, dv)


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def _advance(chunk, state, written):
    return chunk.across[..., None] * state + transpose(chunk.writes) @ written


def _prepare(rows, table):
    q, k, a, b, g = rows
    decays = channel_decays(g, table)
    decayed = jnp.exp(g) * q  # q reads after its row's decay, a before it
    own = jnp.eye(table.chunk_size)
    return _Chunks(
        reads=jnp.concatenate([decays.enter * a, decays.enter * decayed], -2),
        writes=jnp.concatenate([decays.leave * b, decays.leave * k], -2),
        across=decays.across,
        ab=decayed_scores(a, b, decays, table),
        ak=decayed_scores(a, k, decays, table),
        qb=decayed_scores(decayed, b, decays, table) + own * jnp.sum(q * b, -1, keepdims=True),
        qk=decayed_scores(decayed, k, decays, table) + own * jnp.sum(q * k, -1, keepdims=True),
    )


def _in_kernel_order(form):
    """The form with g before a and b, as kernels take their arguments."""
    return lambda q, k, v, g, a, b, *others: form(q, k, v, a, b, g, *others)


_IMPLEMENTATIONS = {"reference": _in_kernel_order(rank_one_decay_scan), "xla": _in_kernel_order(rank_one_decay_chunked)}


def rank_one_decay(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    a: Float[Array, "N H K"],
    b: Float[Array, "N H K"],
    g: Float[Array, "N H K"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """Diagonal plus rank one over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows.
        a, b: rows of the rank-one part; a meets the state before it decays.
        g: log decay, at most 0, and 0 on padding rows.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        scale: of the output, K^-0.5 if None.
        impl: ``auto``, ``reference`` (token by token), ``xla`` (chunk-parallel), or the kernels of
            ``tpu`` or ``gpu`` (`mom_jax.ops.dispatch`).

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: ``impl`` is unknown or cannot run here.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return select(impl, _IMPLEMENTATIONS, "rank_one_decay")(q, k, v, g, a, b, table, initial_state, scale)


def kda_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    beta: Float[Array, "N H"],
    state: Float[Array, "N H K V"],
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token of `kda` for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    o, state = rank_one_decay_step(q, k, *_delta_rows(k, v, g, beta), g, state, scale)
    return o.astype(v.dtype), state


def kda(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    beta: Float[Array, "N H"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """Kimi delta attention over packed rows (module docstring); keys are expected L2-normalised.

    Arguments, results and errors are those of `rank_one_decay`; beta, the write strength, is 0 on
    padding rows.
    """
    rows = _delta_rows(k, v, g, beta)
    o, state = rank_one_decay(q, k, *rows, g, table, initial_state, scale=scale, impl=impl)
    return o.astype(v.dtype), state


def _delta_rows(k, v, g, beta):
    """v, a and b of the delta rule with decays for each channel, float32."""
    k, v, g, beta = (x.astype(jnp.float32) for x in (k, v, g, beta))
    return beta[..., None] * v, jnp.exp(g) * k, -beta[..., None] * k
