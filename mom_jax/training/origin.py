"""What a sitting goes on from: nothing, weights from elsewhere, or the newest whole checkpoint of the run."""

import dataclasses
from typing import NamedTuple

from mom_jax.data.loader import TrainLoader
from mom_jax.training.balance import balanced_from
from mom_jax.training.checkpoint import (
    check_run_is_finite,
    checkpoint_folder,
    holds_weights_alone,
    newest,
    read_config,
    read_position,
    restore,
    restore_params,
    set_aside,
)
from mom_jax.training.config import TrainConfig, changes_between
from mom_jax.training.processes import broadcast_from_first, is_first, together
from mom_jax.training.program import Program
from mom_jax.training.state import TrainState

# What of a model's config its weights do not determine: a run that starts from weights may choose it anew.
_NOT_IN_WEIGHTS = (
    "aux_loss_scale",
    "bos_token_id",
    "compute_dtype",
    "eos_token_id",
    "impl",
    "initializer_range",
    "max_position_embeddings",
    "pad_token_id",
    "reference_conv_leak",
    "router_balance",
    "router_bias_rate",
    "router_noise",
    "router_noise_steps",
    "router_z_loss_scale",
)


class Origin(NamedTuple):
    """What a run goes on from."""

    step: int
    saved: TrainConfig | None  # the config of the checkpoint, if there is one
    weights_alone: bool
    notes: list[str]  # for the user: where it goes on, what has changed since, what was damaged


def find_origin(config: TrainConfig, loader: TrainLoader) -> Origin:
    """The newest whole checkpoint, the same in all processes, which all call this; damaged ones are set aside.

    ``loader`` is moved to the checkpoint's place in the text.

    Raises:
        InputError: no checkpoint is whole, or the config or the text cannot go on from it.
    """
    folder, step, damaged = checkpoint_folder(config.run_dir), None, []
    with together():
        if is_first():  # it checks every byte for all
            step, damaged = newest(folder, set_aside)
    newest_step = broadcast_from_first(-1 if step is None else step)
    if newest_step < 0:
        return Origin(0, None, False, [])
    with together():
        saved = read_config(folder, newest_step)
        if holds_weights_alone(folder, newest_step):
            free = {field: getattr(config.model, field) for field in _NOT_IN_WEIGHTS}
            changes_between(dataclasses.replace(config, model=dataclasses.replace(saved.model, **free)), config)
            return Origin(0, saved, True, [*damaged, f"starting from the weights in {config.run_dir}"])
        changes = changes_between(saved, config)
        loader.set_state(read_position(folder, newest_step))
    resuming = [f"resuming {config.run_dir} at step {newest_step}"] if newest_step < config.steps else []
    changed = [f"changed since: {', '.join(changes)}"] if changes else []
    return Origin(newest_step, saved, False, [*damaged, *resuming, *changed])


def first_state(program: Program, origin: Origin) -> TrainState:
    """The state before the first step of this sitting.

    Raises:
        InputError: the checkpoint cannot be read, or holds parameters that are not finite.
    """
    folder = checkpoint_folder(program.config.run_dir)
    if origin.saved is None:
        return program.init_state()
    if origin.weights_alone:
        state = program.init_state()
        with together():
            params = restore_params(folder, origin.step, Program(origin.saved, program.mesh))
        state = dataclasses.replace(state, params=balanced_from(state.params, params))
    else:
        with together():
            state = restore(folder, origin.step, program)
    check_run_is_finite(state.params, folder / str(origin.step))
    return state
