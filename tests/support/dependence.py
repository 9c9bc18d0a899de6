"""Which outputs depend on which inputs, by gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def dependence(function: Callable, x) -> np.ndarray:
    """`values_and_dependence` without the values."""
    return values_and_dependence(function, x)[1]


def values_and_dependence(function: Callable, x) -> tuple[np.ndarray, np.ndarray]:
    """``function(x)``, [B, T, D] to [B, T, D'], and how much its output [b, t] depends on input [c, s]: [B, T, B, T].

    Each output is projected on a random direction, so a dependence is missed with probability 0.
    Sizes are relative to the largest gradient of the same output.
    """
    rows, time = x.shape[:2]

    @jax.jit
    def gradients(x):
        y, pull = jax.vjp(function, x)
        direction = jax.random.normal(jax.random.key(0), y.shape)
        alone = jnp.eye(rows * time).reshape(rows * time, rows, time, 1) * direction
        return y, jax.lax.map(lambda dy: jnp.abs(pull(dy)[0]).max(-1), alone)

    y, sizes = gradients(x)
    sizes = np.asarray(sizes).reshape(rows, time, rows, time)
    return np.asarray(y), sizes / np.maximum(sizes.max((2, 3), keepdims=True), 1e-30)
