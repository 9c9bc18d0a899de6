"""The run's optimizer with its schedule, from Optax parts."""

import fnmatch
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mom_jax.errors import InputError
from mom_jax.models.structure import dotted
from mom_jax.training.optimizers import Optimizer


def learning_rate_schedule(config: Optimizer, steps: int) -> optax.Schedule:
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


def make_optimizer(
    config: Optimizer, schedule: optax.Schedule, decays: Any, matrices: Any = None
) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer under the learning rates of ``schedule`` and of its groups.

    Args:
        config: of the optimizer.
        schedule: learning rate by the number of updates made.
        decays: whether weight decay applies to each parameter, in a tree like theirs.
        matrices: whether each is a matrix of a product (`Optimizer.transformation`); only muon asks.

    Raises:
        InputError: a group holds no parameter, or as `Optimizer.transformation`.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm), config.transformation(schedule, decays, matrices)]
    if config.rates:
        parts.append(_scale_groups(_factors(config.named_rates(), decays)))
    return optax.chain(*parts)


# Patterns of the parameters' dotted names; what decides how memories are written and forgotten is every parameter of a
# rule but its queries, keys and values.
_GROUPS = {
    "router": re.compile(r"(.*\.)?router\..*"),
    "gates": re.compile(r"(.*\.)?rule\.(?![qkv]_(proj|conv1d|norm|bias)).*"),
    "embeddings": re.compile(r"embeddings|lm_head"),
}


def _factors(rates: dict[str, float], params: Any) -> Any:
    """The factor of each parameter's learning rate, in a tree like theirs; of several groups, the last one counts."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [dotted(path) for path, _ in paths]
    factors = [1.0] * len(names)
    for group, factor in rates.items():
        pattern = _GROUPS.get(group) or re.compile(fnmatch.translate(group))
        inside = [i for i, name in enumerate(names) if pattern.fullmatch(name)]
        if not inside:
            remedy = f"holds no parameter; write {', '.join(_GROUPS)} or a pattern of names such as {names[0]}"
            raise InputError("optimizer.rates", group, remedy)
        for i in inside:
            factors[i] = factor
    return jax.tree.unflatten(tree, factors)


def _scale_groups(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, factors))
