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
In the paper (section 2.7) a layer returns f at the query, ``q + layer_norm(o)``; the function named
above returns ``o + layer_norm(o)``. Either is one line of code on top of o.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.fast_weights import (
    Coefficients,
    Counted,
    Progress,
    Windows,
    counted_state,
    fast_weights_flops,
    normalised_gradient,
    placed,
    progress,
    run_windows,
    to_windows,
    window_rows,
)
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, float32
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float


class TTTRows(NamedTuple):
    """Rows of TTT-Linear, whose D is V; the last three are of all rows, or of the inner norm and the start."""

    q: Float[Array, "N H V"]
    k: Float[Array, "N H V"]  # L2-normalised
    v: Float[Array, "N H V"]
    rate: Float[Array, "N H"]  # inner learning rate of each token
    valid: Bool[Array, " N"]  # rows that hold a token; the others neither write nor count
    norm_weight: Float[Array, "H V"]  # of the inner layer norm
    norm_bias: Float[Array, "H V"]
    # factor of all gradients that a token reads in its mini-batch; with that of the last token the mini-batch stays
    position_rate: Float[Array, "N H"] | None = None  # 1 if None
    start: Float[Array, "H V+1 V"] | None = None  # the learnt memory of a new document; zeros if None


def _step(rows: TTTRows, state: Counted, scale: float, *, mini_batch: int) -> tuple[Float[Array, "N H V"], Counted]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    matrices, count = state
    # [N, H, D + 1] twice, [N, H, D]
    queries, keys, targets = _augmented(rows, scale)
    norm = widened(rows.norm_weight), widened(rows.norm_bias)
    start = jnp.zeros((), queries.dtype) if rows.start is None else widened(rows.start)
    # [N, H, D + 1, D]
    base, gathered = matrices[:, :, 0], matrices[:, :, 1]
    # [N, H, D]
    slope = normalised_gradient(jnp.einsum("nhkv,nhk->nhv", base + start, keys), targets, *norm)
    # [N, H, D + 1, D]
    gathered = gathered + widened(rows.rate)[..., None, None] * keys[..., None] * slope[..., None, :]
    factor = jnp.ones_like(rows.rate) if rows.position_rate is None else rows.position_rate
    current = base - widened(factor)[..., None, None] * gathered
    o = jnp.einsum("nhkv,nhk->nhv", current + start, queries).astype(rows.v.dtype)
    full = (count + 1 == mini_batch)[:, None, None, None]
    new = jnp.stack([jnp.where(full, current, base), jnp.where(full, 0, gathered)], 2)
    return o, counted_state(rows.valid, state, new, mini_batch)


def _by_windows(
    rows: TTTRows, table: ChunkTable, state: Counted | None, scale: float, *, mini_batch: int
) -> tuple[Float[Array, "N H V"], Counted | None]:
    """The same recurrence, by mini-batches (the dual form of arXiv 2407.04620, section 2.5).

    Windows of rows run in sequence, since the layer norm makes a mini-batch's gradients nonlinear in
    the memory. The backward pass keeps the inputs and the state before each chunk.
    """
    matrices, count = (None, None) if state is None else state
    where, count = progress(rows.valid, table, count, mini_batch)
    c = window_rows(table.chunk_size, mini_batch)
    # [chunks, windows, H, c, D + 1] twice, [chunks, windows, H, c, D]
    queries, keys, targets = (to_windows(x, table.chunk_size, c) for x in _augmented(rows, scale))
    # [chunks, windows, H, c]
    rate = to_windows(jnp.where(rows.valid[:, None], rows.rate, 0), table.chunk_size, c)
    factor = rows.position_rate
    factor = jnp.ones_like(rate) if factor is None else to_windows(factor, table.chunk_size, c)
    start = None if rows.start is None else widened(rows.start)
    from_start = None if start is None else (queries @ start, keys @ start)
    coefficients = _coefficients(where, rate, factor)
    windows = Windows(queries, keys, targets, from_start, placed(where), *coefficients)
    parameters = widened(rows.norm_weight), widened(rows.norm_bias)
    o, matrices = run_windows(windows, normalised_gradient, parameters, 0, table, matrices)
    return o.astype(rows.v.dtype), None if matrices is None or count is None else (matrices, count)


def _augmented(
    rows: TTTRows, scale: float
) -> tuple[Float[Array, "N H V+1"], Float[Array, "N H V+1"], Float[Array, "N H V"]]:
    """Queries and keys with a 1 for the bias, and targets."""
    q, k, v = map(widened, rows[:3])
    one = jnp.ones_like(k[..., :1])
    return jnp.concatenate([scale * q, one], -1), jnp.concatenate([k, one], -1), v - k


def _coefficients(
    where: Progress, rate: Float[Array, "chunks windows H c"], factor: Float[Array, "chunks windows H c"]
) -> Coefficients:
    """The coefficients of windows, from the rates and position rates of their rows."""
    old = where.document == 0  # of the incoming memory
    first, behind = old & (where.passed == 0), old & (where.passed > 0)
    passed, document = where.passed, where.document
    mates = where.together() & (passed[..., :, None] == passed[..., None, :])

    heads = lambda mask: mask[:, :, None].astype(rate.dtype)  # noqa: E731
    at_border = jnp.sum(factor * heads(where.border & old), -1, keepdims=True)  # [chunks, windows, H, 1]
    read_factor = jnp.where(heads(first) > 0, factor, at_border * heads(behind))
    read_state = jnp.stack([jnp.broadcast_to(heads(old), read_factor.shape), -read_factor], -1)
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


@functools.cache
def ttt_linear(mini_batch: int) -> Primitive:
    """TTT-Linear in which ``mini_batch`` tokens in a row take their gradients at the same memory."""
    return Primitive(
        name="ttt linear",
        rows=TTTRows,
        # W' and the gradients gathered since, and how many tokens those are of
        state=lambda heads, keys, values: (float32(heads, 2, keys + 1, values), float32()),
        step=functools.partial(_step, mini_batch=mini_batch),
        chunked=functools.partial(_by_windows, mini_batch=mini_batch),
        skips=False,
        inert=("valid",),
        shared=("norm_weight", "norm_bias", "start"),
        flops=lambda chunk, keys, values: fast_weights_flops(window_rows(chunk, mini_batch), keys + 1, values, 2),
    )


TTT_LINEAR = ttt_linear(mini_batch=16)
