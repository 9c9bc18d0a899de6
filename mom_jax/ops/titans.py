"""Titans' linear long-term memory (arXiv 2501.00663, sections 3.1 and 3.2) over packed segments.

Per head, a memory M and its momentum P, both of shape [K, V] in float32. With M' the memory when t's
mini-batch began:

    P_t = eta_t P_{t-1} - theta_t dloss_t/dM (M');   M_t = (1 - alpha_t) M_{t-1} + P_t;   o_t = scale * M_t^T q_t

The loss is the paper's, ``|M^T k_t - v_t|^2``. With ``norm`` it is that of the function
`chunk_titans_linear_ref` in flash-linear-attention, ``|LN(M^T k_t) - (v_t - k_t)|^2`` with K = V, which
puts TTT's inner model in its place. That function's gradient misses a pair of parentheses: it
divides two of three terms by the standard deviation. Here the gradient is that of the loss, as the
paper has it. That function also returns ``o + layer_norm(o)``, one line on top of o.

`titans_linear_step`, `titans_linear_scan` and `titans_linear_chunked` are three forms of one function.
"""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import scan_rows
from mom_jax.ops.dispatch import select
from mom_jax.ops.fast_weights import (
    Gradient,
    Progress,
    Windows,
    normalised_gradient,
    placed,
    progress,
    run_windows,
    squared_gradient,
    to_windows,
    window_rows,
)
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float

Norm = tuple[Float[Array, "H V"], Float[Array, "H V"]]
State = tuple[Float[Array, "S H 3 K V"], Float[Array, " S"]]  # (M, P and M', tokens since M')


def titans_linear_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    theta: Float[Array, "N H"],
    alpha: Float[Array, "N H"],
    eta: Float[Array, "N H"],
    norm: Norm | None,
    state: State,
    scale: float,
    mini_batch: int,
    gradient: Gradient | None = None,
) -> tuple[Float[Array, "N H V"], State]:
    """One token for each of N independent states; arguments as `titans_linear_scan`. Returns outputs and new states."""
    matrices, count = state
    memory, momentum, base = (matrices[:, :, i] for i in range(3))
    q, keys, target = _rows(q, k, v, norm)
    prediction = jnp.einsum("nhkv,nhk->nhv", base, keys)
    slope = _gradient(gradient, norm)(prediction, target, *(norm or ()))
    theta, alpha, eta = (x.astype(jnp.float32)[..., None, None] for x in (theta, alpha, eta))
    momentum = eta * momentum - 2 * theta * keys[..., None] * slope[..., None, :]
    memory = (1 - alpha) * memory + momentum
    o = (scale * jnp.einsum("nhkv,nhk->nhv", memory, q)).astype(v.dtype)
    count = count + 1
    base = jnp.where((count == mini_batch)[:, None, None, None], memory, base)
    return o, (jnp.stack([memory, momentum, base], 2), jnp.where(count == mini_batch, 0.0, count))


def titans_linear_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    theta: Float[Array, "N H"],
    alpha: Float[Array, "N H"],
    eta: Float[Array, "N H"],
    norm: Norm | None,
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None,
    scale: float,
    mini_batch: int,
    gradient: Gradient | None = None,
) -> tuple[Float[Array, "N H V"], State | None]:
    """The recurrence exactly as written, one row after the other; arguments as `titans_linear`.

    ``gradient`` replaces that of half the loss: ``(prediction, target, *norm)``.
    """

    def step(q, k, v, theta, alpha, eta, valid, state):
        o, (matrices, count) = titans_linear_step(
            q, k, v, theta, alpha, eta, norm, state, scale, mini_batch, gradient
        )
        return o, (jnp.where(valid[:, None, None, None, None], matrices, state[0]), jnp.where(valid, count, state[1]))

    shape = (k.shape[1], 3, k.shape[-1], v.shape[-1])
    shapes = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    return scan_rows(step, (q, k, v, theta, alpha, eta, valid), table, initial_state, shapes)


def titans_linear_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    theta: Float[Array, "N H"],
    alpha: Float[Array, "N H"],
    eta: Float[Array, "N H"],
    norm: Norm | None,
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None,
    scale: float,
    mini_batch: int,
    gradient: Gradient | None = None,
) -> tuple[Float[Array, "N H V"], State | None]:
    """The same function by mini-batches (arXiv 2501.00663, section 3.2).

    Given a mini-batch's gradients, momentum and memory are linear in them, with coefficients from
    products of eta and of 1 - alpha between rows. Windows of rows run in sequence; the
    backward pass keeps the inputs and the state before each chunk.
    """
    matrices, count = (None, None) if initial_state is None else initial_state
    where, count = progress(valid, table, count, mini_batch)
    c = window_rows(table.chunk_size, mini_batch)
    queries, keys, targets = (to_windows(x, table.chunk_size, c) for x in _rows(scale * q, k, v, norm))
    inert = ((theta, 0.0), (1 - alpha, 1.0), (eta, 1.0))
    rates = (to_windows(jnp.where(valid[:, None], x, y), table.chunk_size, c) for x, y in inert)
    coefficients = _coefficients(where, to_windows(valid, table.chunk_size, c)[:, :, None], *rates)
    windows = Windows(queries, keys, targets, None, placed(where), *coefficients)
    parameters = tuple(p.astype(jnp.float32) for p in norm or ())
    o, matrices = run_windows(windows, _gradient(gradient, norm), parameters, 2, table, matrices)
    return o.astype(v.dtype), None if matrices is None or count is None else (matrices, count)


def _rows(q, k, v, norm):
    """Queries, keys and targets in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return q, k, v if norm is None else v - k


def _gradient(gradient: Gradient | None, norm: Norm | None) -> Gradient:
    if gradient is not None:
        return gradient
    return squared_gradient if norm is None else normalised_gradient


def _products(x):
    """[..., c] to [..., t, i]: the product of x over i < j <= t, 0 above the diagonal; exact where x is 0."""
    size = x.shape[-1]
    behind = jnp.tril(jnp.ones((size, size), bool), -1)  # j behind i, along the last but one axis
    return jnp.tril(jnp.cumprod(jnp.where(behind, x[..., :, None], 1.0), -2))


def _coefficients(where: Progress, valid, theta, keep, eta):
    """The last six fields of `Windows` from rates [chunks, windows, H, c]; inert rows do not add their momentum."""
    together = where.together()[:, :, None]
    old = (where.document == 0)[:, :, None]
    kept, gone = (jnp.where(together, _products(x), 0.0) for x in (keep, eta))
    memory_rows = -2 * kept @ (valid[..., None] * gone) * theta[..., None, :]
    momentum_rows = -2 * gone[..., -1, :] * theta
    memory, momentum = (jnp.where(old, jnp.cumprod(x, -1), 0.0) for x in (keep, eta))
    from_momentum = jnp.einsum("...ti,...i->...t", kept, valid * momentum)
    nothing = jnp.zeros_like(memory)
    read_state = jnp.stack([memory, from_momentum, nothing], -1)

    first_border = (where.border & (where.document == 0))[:, :, None].astype(jnp.float32)
    border_state = jnp.einsum("...t,...tp->...p", first_border, read_state)
    border_rows = jnp.einsum("...t,...ti->...i", first_border, memory_rows)

    last_border = where.border & (where.document == where.document[..., -1:])
    at_border = last_border[:, :, None].astype(jnp.float32)
    unmoved = (old[..., -1] & ~jnp.any(last_border, -1)[:, :, None])[..., None] * jnp.array([0.0, 0.0, 1.0])
    base_state = jnp.einsum("...t,...tp->...p", at_border, read_state) + unmoved
    base_rows = jnp.einsum("...t,...ti->...i", at_border, memory_rows)
    last_momentum = jnp.stack([nothing[..., -1], momentum[..., -1], nothing[..., -1]], -1)
    end_state = jnp.stack([read_state[..., -1, :], last_momentum, base_state], -2)
    end_rows = jnp.stack([memory_rows[..., -1, :], momentum_rows, base_rows], -2)
    return read_state, memory_rows, border_state, border_rows, end_state, end_rows


_IMPLEMENTATIONS = {"reference": titans_linear_scan, "xla": titans_linear_chunked}


def titans_linear(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    theta: Float[Array, "N H"],
    alpha: Float[Array, "N H"],
    eta: Float[Array, "N H"],
    valid: Bool[Array, " N"],
    table: ChunkTable,
    initial_state: State | None = None,
    *,
    norm: Norm | None = None,
    mini_batch: int = 16,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], State | None]:
    """Titans' linear memory over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows; keys are expected L2-normalised.
        theta: weight of the momentary surprise, the inner learning rate.
        alpha: forgetting, in [0, 1].
        eta: decay of past surprise, in [0, 1].
        valid: rows that hold a token; the others neither write nor count.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        norm: weight and bias of an inner layer norm, with K = V; None is the paper's loss.
        mini_batch: tokens that take their gradients at the same memory; 1 is the paper's recurrence.
        scale: of the output, K^-0.5 if None.
        impl: ``auto``, ``reference`` (token by token) or ``xla`` (by mini-batches).

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: unknown ``impl``.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    run = functools.partial(select(impl, _IMPLEMENTATIONS), scale=scale, mini_batch=mini_batch)
    return run(q, k, v, theta, alpha, eta, norm, valid, table, initial_state)
