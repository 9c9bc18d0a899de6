"""Which outputs depend on which inputs, by gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from support.compiled import jit


def dependence(function: Callable, x) -> np.ndarray:
    """Whether output [b, t] of ``function(x)``, [B, T, D] to [B, T, D'], depends on input [c, s]: bool [B, T, B, T].

    Each output is projected on a random direction, so a dependence is missed with probability 0
    and an independence is an exact 0.
    """
    rows, time = x.shape[:2]

    @jit
    def gradients(x):
        y, pull = jax.vjp(function, x)
        direction = jax.random.normal(jax.random.key(0), y.shape)
        alone = jnp.eye(rows * time).reshape(rows * time, rows, time, 1) * direction
        return jnp.abs(jax.vmap(lambda dy: pull(dy)[0])(alone)).max(-1)

    return np.asarray(gradients(x)).reshape(rows, time, rows, time) > 0
