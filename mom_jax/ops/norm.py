"""Normalisations, computed in float32 or wider.

Their backward passes keep the inputs, in the inputs' own dtype, and compute the rest again: it is one more pass over
what is read anyway.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mom_jax.ops.precision import widened
from mom_jax.typing import Array, Float


def rms_norm(x: Float[Array, "*batch D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*batch D"]:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; returns ``x.dtype``."""

    def norm(x, weight):
        y = widened(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
        return (y * widened(weight)).astype(x.dtype)

    return _keeping_inputs(norm)(x, weight)


def norm_and_gate(
    x: Float[Array, "*batch D"],
    before: Callable[[Array], Array] | None,
    weight: Float[Array, " D"] | None,
    gate: Float[Array, "*batch D"] | None,
    activation: Callable[[Array], Array],
    eps: float,
) -> Float[Array, "*batch D"]:
    """``rms_norm(before(x)) * activation(gate)`` without rounding in between, each as far as it is there.

    ``weight`` is the norm's, and None leaves it out. Returns ``x.dtype``.
    """
    if before is weight is gate is None:
        return x

    def run(x, weight, gate):
        y = widened(x) if before is None else before(widened(x))
        if weight is not None:
            y = rms_norm(y, weight, eps)
        if gate is not None:
            y = y * activation(widened(gate))
        return y.astype(x.dtype)

    return _keeping_inputs(run)(x, weight, gate)


def layer_norm(
    x: Float[Array, "*batch D"], weight: Float[Array, "*#batch D"], bias: Float[Array, "*#batch D"], eps: float
) -> Float[Array, "*batch D"]:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last axis; float32 or wider."""
    y = widened(x)
    y = y - jnp.mean(y, -1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps) * weight + bias


def l2_norm(x: Float[Array, "*batch D"], eps: float = 1e-6) -> Float[Array, "*batch D"]:
    """``x / sqrt(sum(x^2) + eps)`` over the last axis; returns ``x.dtype``."""

    def norm(x):
        y = widened(x)
        return (y * jax.lax.rsqrt(jnp.sum(y * y, -1, keepdims=True) + eps)).astype(x.dtype)

    return _keeping_inputs(norm)(x)


def l2_norm_of_heads(x: Float[Array, "*batch D"], head: int) -> Float[Array, "*batch D"]:
    """`l2_norm` of every ``head`` channels that follow each other."""
    return l2_norm(x.reshape(*x.shape[:-1], -1, head)).reshape(x.shape)


def _keeping_inputs(norm: Callable[..., Array]) -> Callable[..., Array]:
    return jax.checkpoint(norm, prevent_cse=False)
