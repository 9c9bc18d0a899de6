"""The optimiser of the paper's recipe, from Optax parts."""

from typing import Any

import jax.numpy as jnp
import optax

from mom_jax.training.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    Linear warm-up from 0 to the peak over ``warmup_steps`` (at most ``steps``), then either a cosine to
    ``peak * min_learning_rate_ratio`` at ``steps``, or (``wsd``) the peak until the last
    ``decay_fraction * steps`` updates and a straight line to that minimum.
    """
    peak = config.learning_rate
    final = peak * config.min_learning_rate_ratio
    warmup = min(config.warmup_steps, steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=config.min_learning_rate_ratio)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    decay = min(round(config.decay_fraction * steps), steps - warmup)
    parts = [
        optax.linear_schedule(0.0, peak, warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, final, decay),
    ]
    return optax.join_schedules(parts, [warmup, steps - decay])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule, decays: Any) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW under the learning rates of ``schedule``; moments are float32.

    Args:
        config: of the optimizer.
        schedule: learning rate by the number of updates made.
        decays: whether weight decay applies to each parameter, in a tree like theirs.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
            mu_dtype=jnp.float32,
        ),
    )
