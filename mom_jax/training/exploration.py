"""What routers do in training alone: noise that falls along its schedule, and choices of the memories."""

import jax.numpy as jnp

from mom_jax.layers.router import RouterTraining
from mom_jax.models.config import MoMConfig
from mom_jax.typing import Array


def router_training(config: MoMConfig, key: Array, step: Array) -> RouterTraining | None:
    """Of one pass over a micro-batch; None where routers do the same in training and in decoding.

    Args:
        config: of the model.
        key: of `jax.random`, another for each pass.
        step: steps taken so far.
    """
    if not (config.router_noise or config.router_expert_choice):
        return None
    if not config.router_noise:
        return RouterTraining(key)
    left = 1.0 if config.router_noise_steps is None else jnp.maximum(1 - step / config.router_noise_steps, 0)
    return RouterTraining(key, jnp.float32(config.router_noise * left))
