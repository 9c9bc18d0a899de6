"""Decays within a chunk from one log gate for each head, and which rows documents hide, inside a TPU kernel.

Where a backward kernel is not written out, it is the gradient of the forward kernel; so everything here has a
gradient that Mosaic can lower.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.tpu.products import column_index, pieces, product, row_index, to_column
from pallas_kernels.tpu.states import Ref


class Documents(NamedTuple):
    """Which paths stay within one document; all rows belong to one where there are no documents."""

    between: jax.Array | None  # bool [1, C, C]: two rows
    enter: jax.Array | None  # bool [1, C, 1]: the chunk's start and a row
    leave: jax.Array | None  # bool [1, C, 1]: a row and the chunk's end
    across: jax.Array | None  # bool [1, 1, 1]: start and end


def documents(number: Ref | None) -> Documents:
    """The masks of a chunk's document numbers, int32 [1, C]."""
    if number is None:
        return Documents(None, None, None, None)
    row = number[...].astype(jnp.float32)[None]  # exact: at most C
    column, last = to_column(row), jnp.max(row, -1, keepdims=True)
    return Documents(column == row, column == 0, column == last, last == 0)


def masked(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """``x`` where ``keep`` holds, else 0."""
    return x if keep is None else jnp.where(keep, x, 0.0)


class Decays(NamedTuple):
    """Decays from one log gate for each head."""

    between: jax.Array  # [MB, C, C]: from row i to row t, 0 above the diagonal
    enter: jax.Array  # [MB, C, 1]: from the chunk's start to a row
    leave: jax.Array  # [MB, C, 1]: from a row to the chunk's end
    across: jax.Array  # [MB, 1, 1]


def _head_decays(gates: jax.Array, inside: Documents) -> Decays:
    """Decays of gates [MB, 1, C]; a row reads after its own gate.

    Only the gates between two rows are summed: a difference of running sums would lose weak
    gates next to very negative ones.
    """
    square = (gates.shape[0], gates.shape[-1], gates.shape[-1])
    t, i = row_index(square), column_index(square)
    lower = jnp.where(i <= t, 1.0, 0.0).astype(jnp.bfloat16)
    terms = pieces(jnp.where(t > i, to_column(gates), 0.0), 3)
    passed = sum(product(lower, x) for x in terms)  # over i < j <= t
    kept = i <= t if inside.between is None else (i <= t) & inside.between
    entering = jnp.sum(jnp.where(i <= t, gates, 0.0), -1, keepdims=True)
    leaving = jnp.sum(jnp.where(i > t, gates, 0.0), -1, keepdims=True)
    return Decays(
        between=jnp.exp(jnp.where(kept, passed, -jnp.inf)),
        enter=masked(jnp.exp(entering), inside.enter),
        leave=masked(jnp.exp(leaving), inside.leave),
        across=masked(jnp.exp(jnp.sum(gates, -1, keepdims=True)), inside.across),
    )


head_decays = jax.custom_vjp(_head_decays)


def _head_decays_fwd(gates, inside):
    decays = _head_decays(gates, inside)
    return decays, decays


def _head_decays_bwd(decays, d):
    return head_gate_gradients(*(x * dx for x, dx in zip(decays, d, strict=True))), None


head_decays.defvjp(_head_decays_fwd, _head_decays_bwd)


def head_gate_gradients(paths: jax.Array, entering: jax.Array, leaving: jax.Array, across: jax.Array) -> jax.Array:
    """Gradients [MB, 1, C] of log gates from those of the logarithms of `Decays`, of the same shapes.

    The gate of row j lies on every path from a row i < j to a row t >= j, from the start to t,
    and from i to the end.
    """
    i, j = row_index(paths.shape), column_index(paths.shape)
    lower = jnp.where(j <= i, 1.0, 0.0).astype(jnp.bfloat16)
    reaching = sum(product(x, lower, "tn") for x in pieces(paths, 3))  # over t >= j, [i, j]
    total = jnp.where(i < j, reaching + leaving, 0.0) + jnp.where(j <= i, entering, 0.0)
    return jnp.sum(total, -2, keepdims=True) + across


def no_decays(size: int, inside: Documents) -> tuple[jax.Array, Any, Any, Any]:
    """`Decays` without gates: a mask between rows, and masks or None where nothing is hidden."""
    shape = (1, size, size)
    between = row_index(shape) >= column_index(shape)
    between = between if inside.between is None else between & inside.between
    enter, leave, across = (None if keep is None else jnp.where(keep, 1.0, 0.0) for keep in inside[1:])
    return jnp.where(between, 1.0, 0.0), enter, leave, across


def times(x: jax.Array, decay: jax.Array | None) -> jax.Array:
    """``x`` times a decay; None stands for 1."""
    return x if decay is None else x * decay
