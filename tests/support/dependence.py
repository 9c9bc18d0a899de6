"""Which outputs depend on which inputs, by gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def allowed(real, documents) -> np.ndarray:
    """Who may depend on whom, [B, T, B, T]: real tokens of one row and document on those that are not later."""
    row, time = map(np.arange, documents.shape)
    may = (row[:, None, None, None] == row[:, None]) & (time[:, None, None] >= time)
    return may & (documents[:, :, None, None] == documents) & real[:, :, None, None] & real


def dependence(function: Callable, x) -> np.ndarray:
    """How much each output of ``function``, [B, T, D] to [B, T, D'], depends on each input: [B, T, B, T]."""
    return np.asarray(jax.jit(lambda x: values_and_dependence(lambda x: (function(x), None), x)[1])(x))


def values_and_dependence(function: Callable, x) -> tuple[jax.Array, jax.Array, Any]:
    """``y`` and whatever comes with it, of ``(y, rest) = function(x)``, and how much y [b, t] depends on x [c, s].

    Each output is projected on a random direction, so a dependence is missed with probability 0.
    Sizes are relative to the largest gradient of the same output.
    """
    rows, time = x.shape[:2]
    y, pull, rest = jax.vjp(function, x, has_aux=True)
    direction = jax.random.normal(jax.random.key(0), y.shape)
    alone = jnp.eye(rows * time).reshape(rows * time, rows, time, 1) * direction
    sizes = jax.lax.map(lambda dy: jnp.abs(pull(dy)[0]).max(-1), alone).reshape(rows, time, rows, time)
    return y, sizes / jnp.maximum(sizes.max((2, 3), keepdims=True), 1e-30), rest
