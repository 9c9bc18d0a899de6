"""The gated delta rule over packed segments (Gated DeltaNet, arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

``g = 0`` is the plain delta rule (DeltaNet, arXiv 2406.06484). Keys are expected L2-normalised.

Three forms of the same function: `delta_rule_step` (one token for each row, decoding),
`delta_rule_scan` (token by token, the oracle) and `delta_rule_chunked` (chunk-parallel, with
its own backward pass). All take packed rows ordered by a `ChunkTable`. Padding rows must have
``beta = 0`` and ``g = 0``; then they neither write nor decay.
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
from mom_jax.ops.decays import head_decays
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
    step = functools.partial(delta_rule_step, scale=scale)
    return scan_rows(step, (q, k, v, g, beta), table, initial_state, matrix_state(k, v))


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

    Chunks are worked off in groups (`to_groups`), so that what is computed in between stays in a cache. The backward
    pass keeps the inputs, R and the inverse, as much as one more value row and C floats for each row and head, and one
    state for each group. The states at chunk borders, K*V floats for C rows, are recomputed with one matmul each, a
    group's at a time.
    """
    q, k, value, g, beta = (to_chunks(x, table.chunk_size) for x in (q, k, v, g, beta))
    o, final = _chunked(scale * q, k, value, g, beta, table, initial_state)
    return from_chunks(o).astype(v.dtype), final


@jax.custom_vjp
def _chunked(q, k, v, g, beta, table, initial_state) -> tuple[Array, Array | None]:
    return _chunked_fwd(q, k, v, g, beta, table, initial_state)[0]


def _chunked_fwd(q, k, v, g, beta, table, initial_state):
    groups = to_groups((q, k, v, g, beta), table)
    carried = initial_carry(initial_state, matrix_state(k, v))
    (_, stored), (o, *kept) = jax.lax.scan(_forward_group, carried, groups)
    return (from_groups(o, table), final_states(stored)), (q, k, g, beta, table, initial_state, kept)


def _forward_group(carried, group):
    """Outputs of some chunks, and what their backward pass keeps: R, the inverses, the state before the first."""
    (q, k, v, g, beta), table = group
    chunks = _prepare(q, k, g, beta, table)
    to_update = chunks.inverse * beta[..., None, :]
    inside = jnp.concatenate([to_update, chunks.scores @ to_update], -2)
    size = table.chunk_size

    def body(carried, xs):
        state, stored = carried
        chunk, inside_c, value, first, segment, last = xs
        state = load(stored, state, segment, first)
        read = chunk.reads @ state
        residual = value + read[..., :size, :]
        own = inside_c @ residual
        state = _advance(chunk, state, own[..., :size, :])
        return (state, store(stored, state, segment, last)), (own[..., size:, :] + read[..., size:, :], residual)

    xs = (chunks, inside, v, table.first, table.segment, table.last)
    after, (o, residual) = jax.lax.scan(body, carried, xs)
    return after, (o, residual, chunks.inverse, carried[0])


def _chunked_bwd(residuals, cotangents):
    q, k, g, beta, table, initial_state, kept = residuals
    do, dfinal = cotangents
    shape = matrix_state(k, do)
    _, start = initial_carry(initial_state, shape)
    groups = (*to_groups((q, k, g, beta, do), table), *kept)
    body = functools.partial(_backward_group, start)
    (_, dstored), gradients = jax.lax.scan(body, initial_carry(dfinal, shape), groups, reverse=True)
    return *from_groups(gradients, table), None, final_states(dstored)


def _backward_group(start, carried, group):
    """Gradients of q, k, v, g and beta of some chunks."""
    (q, k, g, beta, do), table, residual, inverse, entering = group
    chunks = _prepare(q, k, g, beta, table, inverse)
    update = inverse @ (beta[..., None] * residual)
    states = states_before(_advance, start, entering, (chunks, update), table)
    dupdate = transpose(chunks.scores) @ do

    def body(carry, xs):
        dstate, dstored = carry
        chunk, beta_c, state, update_c, do_c, du, first, segment, last = xs
        dstate = load(dstored, dstate, segment, last)
        dwritten = transpose(chunk.inverse) @ (du + chunk.writes @ dstate)
        dread = jnp.concatenate([beta_c[..., None] * dwritten, do_c], -2)
        dreads = dread @ transpose(state)
        dwrites = update_c @ transpose(dstate)
        dacross = jnp.sum(dstate * state, (-2, -1))
        dstate = chunk.across[..., None, None] * dstate + transpose(chunk.reads) @ dread
        return (dstate, store(dstored, dstate, segment, first)), (dwritten, dreads, dwrites, dacross)

    xs = (chunks, beta, states, update, do, dupdate, table.first, table.segment, table.last)
    carried, (dwritten, dreads, dwrites, dacross) = jax.lax.scan(body, carried, xs, reverse=True)
    dq, dk, dgram, dg = _inner_gradients(q, k, g, beta, table, chunks, update, do, dwritten, dreads, dwrites, dacross)
    dbeta = jnp.sum(dwritten * residual, -1) + dgram
    return carried, (dq, dk, beta[..., None] * dwritten, dg, dbeta)


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def _advance(chunk, state, update):
    return chunk.across[..., None, None] * state + transpose(chunk.writes) @ update


def _prepare(q, k, g, beta, table, inverse=None):
    between, enter, leave, across = head_decays(g, table)
    if inverse is None:
        inverse = unit_lower_inverse(jnp.tril(beta[..., None] * between * (k @ transpose(k)), -1))
    reads = jnp.concatenate([-enter[..., None] * k, enter[..., None] * q], -2)
    return _Chunks(reads, leave[..., None] * k, across, inverse, between * (q @ transpose(k)))


def _inner_gradients(q, k, g, beta, table, chunks, update, do, dwritten, dreads, dwrites, dacross):
    """Gradients of q, k and g, and beta's share through A, once those of `_Chunks` are known."""
    between, enter, leave, across = head_decays(g, table)
    gram = between * (k @ transpose(k))
    dscores = do @ transpose(update)
    dstrict = -jnp.tril(dwritten @ transpose(update), -1)
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
    dk = dk + transpose(dscores) @ q + (dstrict + transpose(dstrict)) @ k
    return dq, dk, dgram, dg


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
        impl: ``auto``, ``reference`` (token by token), ``xla`` (chunk-parallel), or the kernels of
            ``tpu`` or ``gpu`` (`mom_jax.ops.dispatch`).

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: ``impl`` is unknown or cannot run here.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return select(impl, _IMPLEMENTATIONS, "delta_rule")(q, k, v, g, beta, table, initial_state, scale)
