"""Titans' linear long-term memory (arXiv 2501.00663, sections 3.1 and 3.2) over packed segments.

Per head, a memory M and its momentum P, both of shape [K, V] in float32. With M' the memory when t's
mini-batch began:

    P_t = eta_t P_{t-1} - theta_t dloss_t/dM (M');   M_t = (1 - alpha_t) M_{t-1} + P_t;   o_t = scale * M_t^T q_t

The loss is the paper's, ``|M^T k_t - v_t|^2``. With ``norm`` it is that of the function
`chunk_titans_linear_ref` in flash-linear-attention, ``|LN(M^T k_t) - (v_t - k_t)|^2`` with K = V, which
puts TTT's inner model in its place. That function's gradient misses a pair of parentheses: it
divides two of three terms by the standard deviation. Here the gradient is that of the loss, as the
paper has it. That function also returns ``o + layer_norm(o)``, one line of code on top of o.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.fast_weights import (
    Coefficients,
    Counted,
    Gradient,
    Progress,
    Windows,
    counted_state,
    fast_weights_flops,
    normalised_gradient,
    placed,
    progress,
    run_windows,
    squared_gradient,
    to_windows,
    window_rows,
)
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, float32
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float


class TitansRows(NamedTuple):
    """Rows of Titans' linear memory; the norm is of all rows."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]  # L2-normalised
    v: Float[Array, "N H V"]
    theta: Float[Array, "N H"]  # weight of the momentary surprise, the inner learning rate
    alpha: Float[Array, "N H"]  # forgetting, in [0, 1]
    eta: Float[Array, "N H"]  # decay of past surprise, in [0, 1]
    valid: Bool[Array, " N"]  # rows that hold a token; the others neither write nor count
    norm_weight: Float[Array, "H V"] | None = None  # of an inner layer norm, with K = V; None is the paper's loss
    norm_bias: Float[Array, "H V"] | None = None


def _step(
    rows: TitansRows, state: Counted, scale: float, *, mini_batch: int, gradient: Gradient | None
) -> tuple[Float[Array, "N H V"], Counted]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    matrices, count = state
    # [N, H, K, V] each
    memory, momentum, base = (matrices[:, :, i] for i in range(3))
    # [N, H, K] twice, [N, H, V]
    queries, keys, target = _targets(rows)
    prediction = jnp.einsum("nhkv,nhk->nhv", base, keys)
    slope = _gradient(gradient, rows)(prediction, target, *_norm(rows))
    # [N, H, 1, 1] each
    theta, alpha, eta = (widened(x)[..., None, None] for x in (rows.theta, rows.alpha, rows.eta))
    # [N, H, K, V]
    momentum = eta * momentum - 2 * theta * keys[..., None] * slope[..., None, :]
    memory = (1 - alpha) * memory + momentum
    o = (scale * jnp.einsum("nhkv,nhk->nhv", memory, queries)).astype(rows.v.dtype)
    base = jnp.where((count + 1 == mini_batch)[:, None, None, None], memory, base)
    return o, counted_state(rows.valid, state, jnp.stack([memory, momentum, base], 2), mini_batch)


def _by_windows(
    rows: TitansRows,
    table: ChunkTable,
    state: Counted | None,
    scale: float,
    *,
    mini_batch: int,
    gradient: Gradient | None,
) -> tuple[Float[Array, "N H V"], Counted | None]:
    """The same recurrence, by mini-batches (arXiv 2501.00663, section 3.2).

    Given a mini-batch's gradients, momentum and memory are linear in them, with coefficients from
    products of eta and of 1 - alpha between rows. Windows of rows run in sequence; the
    backward pass keeps the inputs and the state before each chunk.
    """
    matrices, count = (None, None) if state is None else state
    valid, size = rows.valid, table.chunk_size
    where, count = progress(valid, table, count, mini_batch)
    c = window_rows(size, mini_batch)
    queries, keys, targets = _targets(rows)
    # [chunks, windows, H, c, K or V]
    queries, keys, targets = (to_windows(x, size, c) for x in (scale * queries, keys, targets))
    # [chunks, windows, H, c], without effect on rows that are not valid
    inert = ((rows.theta, 0), (1 - rows.alpha, 1), (rows.eta, 1))
    rates = (to_windows(jnp.where(valid[:, None], x, y), size, c) for x, y in inert)
    coefficients = _coefficients(where, to_windows(valid.astype(queries.dtype), size, c)[:, :, None], *rates)
    windows = Windows(queries, keys, targets, None, placed(where), *coefficients)
    o, matrices = run_windows(windows, _gradient(gradient, rows), _norm(rows), 2, table, matrices)
    return o.astype(rows.v.dtype), None if matrices is None or count is None else (matrices, count)


def _targets(
    rows: TitansRows,
) -> tuple[Float[Array, "N H K"], Float[Array, "N H K"], Float[Array, "N H V"]]:
    """Queries, keys and targets."""
    q, k, v = map(widened, rows[:3])
    return q, k, v if rows.norm_weight is None else v - k


def _norm(rows: TitansRows) -> tuple[Float[Array, "H V"], ...]:
    if rows.norm_weight is None or rows.norm_bias is None:
        return ()
    return widened(rows.norm_weight), widened(rows.norm_bias)


def _gradient(gradient: Gradient | None, rows: TitansRows) -> Gradient:
    if gradient is not None:
        return gradient
    return squared_gradient if rows.norm_weight is None else normalised_gradient


def _products(x: Float[Array, "*batch c"]) -> Float[Array, "*batch c c"]:
    """At [t, i] the product of x over i < j <= t, 0 above the diagonal; exact where x is 0."""
    size = x.shape[-1]
    behind = jnp.tril(jnp.ones((size, size), bool), -1)  # j behind i, along the last but one axis
    return jnp.tril(jnp.cumprod(jnp.where(behind, x[..., :, None], 1.0), -2))


def _coefficients(
    where: Progress,
    valid: Float[Array, "chunks windows 1 c"],
    theta: Float[Array, "chunks windows H c"],
    keep: Float[Array, "chunks windows H c"],
    eta: Float[Array, "chunks windows H c"],
) -> Coefficients:
    """The coefficients of windows, from the rates of their rows; inert rows do not add their momentum."""
    together = where.together()[:, :, None]
    old = (where.document == 0)[:, :, None]
    kept, gone = (jnp.where(together, _products(x), 0.0) for x in (keep, eta))
    memory_rows = -2 * kept @ (valid[..., None] * gone) * theta[..., None, :]
    momentum_rows = -2 * gone[..., -1, :] * theta
    memory, momentum = (jnp.where(old, jnp.cumprod(x, -1), 0.0) for x in (keep, eta))
    from_momentum = jnp.einsum("...ti,...i->...t", kept, valid * momentum)
    nothing = jnp.zeros_like(memory)
    read_state = jnp.stack([memory, from_momentum, nothing], -1)

    first_border = (where.border & (where.document == 0))[:, :, None].astype(keep.dtype)
    border_state = jnp.einsum("...t,...tp->...p", first_border, read_state)
    border_rows = jnp.einsum("...t,...ti->...i", first_border, memory_rows)

    last_border = where.border & (where.document == where.document[..., -1:])
    at_border = last_border[:, :, None].astype(keep.dtype)
    unmoved = (old[..., -1] & ~jnp.any(last_border, -1)[:, :, None])[..., None] * jnp.array([0, 0, 1], memory.dtype)
    base_state = jnp.einsum("...t,...tp->...p", at_border, read_state) + unmoved
    base_rows = jnp.einsum("...t,...ti->...i", at_border, memory_rows)
    last_momentum = jnp.stack([nothing[..., -1], momentum[..., -1], nothing[..., -1]], -1)
    end_state = jnp.stack([read_state[..., -1, :], last_momentum, base_state], -2)
    end_rows = jnp.stack([memory_rows[..., -1, :], momentum_rows, base_rows], -2)
    return read_state, memory_rows, border_state, border_rows, end_state, end_rows


@functools.cache
def titans_linear(mini_batch: int, gradient: Gradient | None = None) -> Primitive:
    """Titans' linear memory.

    Args:
        mini_batch: tokens that take their gradients at the same memory; 1 is the paper's recurrence.
        gradient: of half the loss, ``(prediction, target, *norm)``; the squared error's if None.
    """
    return Primitive(
        name="titans linear",
        rows=TitansRows,
        # M, P and M', and how many tokens came since M'
        state=lambda heads, keys, values: (float32(heads, 3, keys, values), float32()),
        step=functools.partial(_step, mini_batch=mini_batch, gradient=gradient),
        chunked=functools.partial(_by_windows, mini_batch=mini_batch, gradient=gradient),
        skips=False,
        inert=("valid",),
        shared=("norm_weight", "norm_bias"),
        flops=lambda chunk, keys, values: fast_weights_flops(window_rows(chunk, mini_batch), keys, values, 3),
    )


TITANS_LINEAR = titans_linear(mini_batch=16)
