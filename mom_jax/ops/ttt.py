"""TTT-Linear (arXiv 2407.04620, sections 2.3 to 2.7) over packed segments.

Per head, the memory is a linear map W of shape [D + 1, D] in float32, whose last row is the bias (keys and
queries have a 1 appended). With W' the map when t's mini-batch began:

    loss_i(W) = |LN(k_i W) - (v_i - k_i)|^2 / 2
    W_t = W' - position_rate_t * (sum over i <= t of the mini-batch) rate_i d loss_i / dW (W');   o_t = scale * q_t W_t

LN has weight and bias. The rate is the paper's learnt eta(x_i): a gate on the token's own gradient.
``position_rate`` is the official implementation's learnt factor for the place within a mini-batch, 1
if None. The function `chunk_ttt_linear_ref` of flash-linear-attention has that factor alone (its
``eta`` weighs all gradients by the rate of the token that reads), so here it is
``position_rate = eta`` and ``rate = 1``.

The model that a token reconstructs itself with is ``f(x) = x + LN(x W)``, hence the target v - k.
What a layer returns is f at the query, ``q + layer_norm(o)``, by the paper (section 2.7); the
function named above returns ``o + layer_norm(o)``. Both are one line on top of o.

`ttt_linear_step`, `ttt_linear_scan` and `ttt_linear_chunked` are three forms of one function.
"""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import scan_rows
from mom_jax.ops.dispatch import select
from mom_jax.ops.fast_weights import (
    Progress,
    Windows,
    normalised_gradient,
    placed,
    progress,
    run_windows,
    to_windows,
    window_rows,
)
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float

Norm = tuple[Float[Array, "H D"], Float[Array, "H D"]]
State = tuple[Float[Array, "S H 2 D+1 D"], Float[Array, " S"]]  # (W' and the gradients since, tokens since)


def ttt_linear_step(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    rate: Float[Array, "N H"],
    position_rate: Float[Array, "N H"] | None,
    norm: Norm,
    start: Float[Array, "H D+1 D"] | None,
    state: State,
    scale: float,
    mini_batch: int,
) -> tuple[Float[Array, "N H D"], State]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    matrices, count = state
    queries, keys, targets = _rows(q, k, v, scale)
    own = jnp.zeros(()) if start is None else start.astype(jnp.float32)
    base, gathered = matrices[:, :, 0], matrices[:, :, 1]
    slope = normalised_gradient(jnp.einsum("nhkv,nhk->nhv", base + own, keys), targets, *norm)
    gathered = gathered + rate.astype(jnp.float32)[..., None, None] * keys[..., None] * slope[..., None, :]
    factor = jnp.ones_like(rate) if position_rate is None else position_rate
    current = base - factor.astype(jnp.float32)[..., None, None] * gathered
    o = jnp.einsum("nhkv,nhk->nhv", current + own, queries).astype(v.dtype)
    count = count + 1
    full = (count == mini_batch)[:, None, None, None]
    matrices = jnp.stack([jnp.where(full, current, base), jnp.where(full, 0.0, gathered)], 2)
    return o, (matrices, jnp.where(count == mini_batch, 0.0, count))


def ttt_linear_scan(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    rate: Float[Array, "N H"],
    position_rate: Float[Array, "N H"] | None,
    norm: Norm,
    start: Float[Array, "H D+1 D"] | None,
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None,
    scale: float,
    mini_batch: int,
) -> tuple[Float[Array, "N H D"], State | None]:
    """The recurrence exactly as written, one row after the other; arguments as `ttt_linear`."""

    def step(q, k, v, rate, position_rate, valid, state):
        o, (matrices, count) = ttt_linear_step(q, k, v, rate, position_rate, norm, start, state, scale, mini_batch)
        return o, (jnp.where(valid[:, None, None, None, None], matrices, state[0]), jnp.where(valid, count, state[1]))

    heads, size = k.shape[1:]
    shapes = jax.ShapeDtypeStruct((heads, 2, size + 1, size), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    return scan_rows(step, (q, k, v, rate, position_rate, valid), table, initial_state, shapes)


def ttt_linear_chunked(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    rate: Float[Array, "N H"],
    position_rate: Float[Array, "N H"] | None,
    norm: Norm,
    start: Float[Array, "H D+1 D"] | None,
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None,
    scale: float,
    mini_batch: int,
) -> tuple[Float[Array, "N H D"], State | None]:
    """The same function by mini-batches (the dual form of arXiv 2407.04620, section 2.5).

    Windows of rows run in sequence, since the layer norm makes a mini-batch's gradients nonlinear in
    the memory. The backward pass keeps the inputs and the state before each chunk.
    """
    matrices, count = (None, None) if initial_state is None else initial_state
    where, count = progress(valid, table, count, mini_batch)
    c = window_rows(table.chunk_size, mini_batch)
    queries, keys, targets = (to_windows(x, table.chunk_size, c) for x in _rows(q, k, v, scale))
    rate = to_windows(jnp.where(valid[:, None], rate, 0.0), table.chunk_size, c)
    factor = jnp.ones_like(rate) if position_rate is None else to_windows(position_rate, table.chunk_size, c)
    own = None if start is None else (queries @ start.astype(jnp.float32), keys @ start.astype(jnp.float32))
    coefficients = _coefficients(where, rate, factor)
    windows = Windows(queries, keys, targets, own, placed(where), *coefficients)
    parameters = tuple(p.astype(jnp.float32) for p in norm)
    o, matrices = run_windows(windows, normalised_gradient, parameters, 0, table, matrices)
    return o.astype(v.dtype), None if matrices is None or count is None else (matrices, count)


def _rows(q, k, v, scale):
    """Queries and keys with a 1 appended for the bias, and targets; float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    one = jnp.ones_like(k[..., :1])
    return jnp.concatenate([scale * q, one], -1), jnp.concatenate([k, one], -1), v - k


def _coefficients(where: Progress, rate, factor):
    """The last six fields of `Windows` from rates and position rates [chunks, windows, H, c]."""
    old = where.document == 0  # of the incoming memory
    first, behind = old & (where.passed == 0), old & (where.passed > 0)
    passed, document = where.passed, where.document
    mates = where.together() & (passed[..., :, None] == passed[..., None, :])

    heads = lambda mask: mask[:, :, None].astype(jnp.float32)  # noqa: E731
    at_border = jnp.sum(factor * heads(where.border & old), -1, keepdims=True)  # [chunks, windows, H, 1]
    own = jnp.where(heads(first) > 0, factor, at_border * heads(behind))
    read_state = jnp.stack([jnp.broadcast_to(heads(old), own.shape), -own], -1)
    across = heads(behind)[..., :, None] * heads(first)[..., None, :] * at_border[..., None]
    read_rows = -rate[..., None, :] * (heads(mates) * factor[..., :, None] + across)
    border_state = jnp.concatenate([jnp.ones_like(at_border), -at_border], -1)
    border_rows = -at_border * rate * heads(first)

    last = document == document[..., -1:]
    done = (passed + where.border)[..., -1:]
    closing = jnp.sum(factor * heads(where.border & last), -1, keepdims=True)
    kept = heads(old[..., -1:])
    unfinished = kept * heads(done == 0)
    state = [kept, -kept * closing, jnp.zeros_like(closing), unfinished]
    end_state = jnp.concatenate([jnp.broadcast_to(x, closing.shape) for x in state], -1)
    ended, pending = (rate * heads(last & mask) for mask in (passed < done, passed == done))
    end_rows = jnp.stack([-closing * ended, pending], -2)
    return read_state, read_rows, border_state, border_rows, end_state.reshape(*end_state.shape[:-1], 2, 2), end_rows


_IMPLEMENTATIONS = {"reference": ttt_linear_scan, "xla": ttt_linear_chunked}


def ttt_linear(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    rate: Float[Array, "N H"],
    norm: Norm,
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None = None,
    *,
    position_rate: Float[Array, "N H"] | None = None,
    start: Float[Array, "H D+1 D"] | None = None,
    mini_batch: int = 16,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H D"], State | None]:
    """TTT-Linear over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows; keys are expected L2-normalised.
        rate: inner learning rate of each token.
        norm: weight and bias of the inner layer norm.
        valid: rows that hold a token; the others neither write nor count.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        position_rate: factor of all gradients that a token reads in its mini-batch; that of the last
            token is the factor with which the mini-batch stays. 1 if None.
        start: the learnt memory of a new document, to which states are added; zeros if None.
        mini_batch: tokens that take their gradients at the same memory.
        scale: of the queries, D^-0.5 if None.
        impl: ``auto``, ``reference`` (token by token) or ``xla`` (by mini-batches).

    Returns:
        Outputs in ``v.dtype`` before the layer norm, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: unknown ``impl``.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    run = functools.partial(select(impl, _IMPLEMENTATIONS), scale=scale, mini_batch=mini_batch)
    return run(q, k, v, rate, position_rate, norm, start, valid, table, initial_state)
