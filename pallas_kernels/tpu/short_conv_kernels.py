"""Bodies of the short convolution's TPU kernels; `short_conv` calls them and has the equations.

Each runs on the grid (blocks of heads, chunks), for the C rows of a chunk and the channels of some heads. References
without an array (no bias, no state, no documents) are None.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.convolutions import EPS
from pallas_kernels.tpu.layout import is_first, is_last, segment_of
from pallas_kernels.tpu.products import to_column

Ref = Any
BEFORE = 16  # rows before a chunk that are there with it: a tile in memory, of which W-1 are seen


def forward(
    table: Ref,
    *,
    x: Ref,  # [C, channels]
    before: Ref,  # [BEFORE, channels]: the rows before
    weight: Ref,  # [W, channels]
    bias: Ref | None,  # [1, channels]
    state: Ref | None,  # [W-1, channels]
    reach: Ref | None,  # [1, C]
    y: Ref,  # [heads, C, K]
    rows: Ref,  # [BEFORE + C, channels] float32
    last: int,
    segments: int,
    activate: bool,
    normalise: bool,
) -> None:
    """Rows as the recurrences read them."""
    entry = table[pl.program_id(1)]
    _fill_rows(entry, x, before, state, rows, segments)
    t = _filtered(rows, weight, bias, _reach_column(reach))
    z = t * jax.nn.sigmoid(t) if activate else t
    for h, part in enumerate(_heads(z, y.shape)):
        if normalise:
            part *= _inverse_norm(part)
        y[h] = part.astype(y.dtype)


def backward(
    table: Ref,
    *,
    x: Ref,
    before: Ref,
    weight: Ref,
    bias: Ref | None,
    state: Ref | None,
    reach: Ref | None,
    dy: Ref,  # [heads, C, K]
    dx: Ref,  # [C, channels]
    dweight: Ref,  # [W, channels], summed over chunks
    dbias: Ref | None,  # [1, channels], summed over chunks
    dstate: Ref | None,  # [W-1, channels]
    rows: Ref,  # [BEFORE + C, channels] float32
    grads: Ref,  # the same: gradients of the rows, and of those before
    carry: Ref,  # [BEFORE, channels] float32: gradients of the last rows, from the chunk behind
    last: int,
    segments: int,
    activate: bool,
    normalise: bool,
) -> None:
    """Gradients; the last chunk comes first."""
    step = pl.program_id(1)
    entry = table[last - step]
    size = x.shape[0]

    @pl.when(step == 0)
    def _():
        dweight[...] = jnp.zeros_like(dweight)
        carry[...] = jnp.zeros_like(carry)
        if dbias is not None:
            dbias[...] = jnp.zeros_like(dbias)

    _fill_rows(entry, x, before, state, rows, segments)
    reach = _reach_column(reach)
    d = _gradient(dy, _filtered(rows, weight, bias, reach), activate, normalise)
    d = jnp.where(segment_of(entry) < segments, d, 0.0)
    if dbias is not None:
        dbias[...] += jnp.sum(d, 0, keepdims=True)
    grads[...] = jnp.zeros_like(grads)
    for w in range(weight.shape[0]):
        masked, tap = _visible(reach, d, w), weight.shape[0] - 1 - w
        dweight[tap : tap + 1, :] += jnp.sum(masked * _shifted(rows, w, size), 0, keepdims=True)
        grads[pl.ds(BEFORE - w, size), :] += masked * weight[tap : tap + 1, :]

    @pl.when(jnp.logical_not(is_last(entry)))
    def _():
        grads[pl.ds(size, BEFORE), :] += carry[...]

    dx[...] = grads[pl.ds(BEFORE, size), :].astype(dx.dtype)
    carry[...] = grads[pl.ds(0, BEFORE), :]
    if dstate is not None:
        history = weight.shape[0] - 1

        @pl.when(is_first(entry))
        def _():
            dstate[...] = grads[pl.ds(BEFORE - history, history), :].astype(dstate.dtype)


def _fill_rows(entry: jax.Array, x: Ref, before: Ref, state: Ref | None, rows: Ref, segments: int) -> None:
    """The rows of a chunk behind what came before: the chunk before has it, or the segment's state, or it is 0."""
    used = segment_of(entry) < segments
    rows[pl.ds(BEFORE, x.shape[0]), :] = jnp.where(used, x[...].astype(jnp.float32), 0.0)
    continues = used & jnp.logical_not(is_first(entry))
    rows[pl.ds(0, BEFORE), :] = jnp.where(continues, before[...].astype(jnp.float32), 0.0)
    if state is not None:
        history = state.shape[0]

        @pl.when(is_first(entry))
        def _():
            rows[pl.ds(BEFORE - history, history), :] = state[...].astype(jnp.float32)


def _reach_column(reach: Ref | None) -> jax.Array | None:
    """How many rows before it each row reach, float32 [C, 1]."""
    return None if reach is None else to_column(reach[...].astype(jnp.float32)[None])[0]


def _visible(reach: jax.Array | None, x: jax.Array, w: int) -> jax.Array:
    """What belongs to the rows that see as far as ``w`` rows before them, else 0."""
    return x if reach is None or w == 0 else jnp.where(reach >= w, x, 0.0)


def _shifted(rows: Ref, w: int, size: int) -> jax.Array:
    """What is ``w`` rows before each row."""
    return rows[pl.ds(BEFORE - w, size), :]


def _filtered(rows: Ref, weight: Ref, bias: Ref | None, reach: jax.Array | None) -> jax.Array:
    """t of a chunk."""
    taps, size = weight.shape[0], rows.shape[0] - BEFORE
    seen = (_visible(reach, _shifted(rows, w, size), w) * weight[taps - 1 - w : taps - w, :] for w in range(taps))
    t = functools.reduce(jnp.add, seen)
    return t if bias is None else t + bias[...]


def _heads(z: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """[C, channels] as heads [C, K]."""
    return [z[:, h * shape[-1] : (h + 1) * shape[-1]] for h in range(shape[0])]


def _inverse_norm(z: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.sum(z * z, -1, keepdims=True) + EPS)


def _gradient(dy: Ref, t: jax.Array, activate: bool, normalise: bool) -> jax.Array:
    """The gradient of t."""
    s = jax.nn.sigmoid(t)
    z = t * s if activate else t
    parts = []
    for h, part in enumerate(_heads(z, dy.shape)):
        d = dy[h].astype(jnp.float32)
        if normalise:
            r = _inverse_norm(part)
            d = r * (d - part * (r * r * jnp.sum(part * d, -1, keepdims=True)))
        parts.append(d)
    d = jnp.concatenate(parts, 1)
    return d * (s * (1 + t * (1 - s))) if activate else d
