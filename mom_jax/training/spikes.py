"""Steps whose loss or gradient norm is far above its running statistics, found on the device.

As MaxText's ``skip_step_on_spikes``, but that a spike enters the statistics as the bound that it exceeded: one spike
then hides no second one, and a new level is accepted after a while.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.training.config import SpikesConfig

_LEAST_DEVIATION = 1e-3  # of the mean: where the values hardly vary, nothing is far


def first_statistics(config: SpikesConfig) -> dict[str, Any] | None:
    """What is carried from step to step, float32 [2, window] and int32 scalars; None where nothing is to be skipped."""
    if not config.active:
        return None
    zero = jnp.zeros((), jnp.int32)
    return {"latest": jnp.zeros((2, config.window), jnp.float32), "count": zero, "total": jnp.zeros((), jnp.int32)}


def judge(statistics: dict[str, Any], values: jax.Array, config: SpikesConfig) -> tuple[jax.Array, dict[str, Any]]:
    """Whether a step is a spike, and the statistics with it; steps that are not finite leave these as they are.

    Args:
        statistics: as `first_statistics`.
        values: loss and gradient norm, float32 [2].
        config: how far is far; nothing is, before ``window`` steps.
    """
    mean, deviation = statistics["latest"].mean(1), statistics["latest"].std(1)
    bound = mean + config.factor * jnp.maximum(deviation, _LEAST_DEVIATION * jnp.abs(mean))
    bound = jnp.where(statistics["count"] < config.window, jnp.inf, bound)
    finite, spike = jnp.isfinite(values).all(), (values > bound).any()
    kept = statistics["latest"].at[:, statistics["count"] % config.window].set(jnp.minimum(values, bound))
    new = {
        "latest": jnp.where(finite, kept, statistics["latest"]),
        "count": statistics["count"] + finite,
        "total": statistics["total"] + (spike & finite),
    }
    return spike & finite, new
