"""What a sitting goes on from: nothing, weights from elsewhere, or the newest whole checkpoint of the run."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.data.config import DataConfig
from mom_jax.data.loader import TrainLoader
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError, named_as
from mom_jax.interop.pretrained import load_pretrained
from mom_jax.interop.published import is_published
from mom_jax.interop.published import read_config as read_published
from mom_jax.interop.tokenizer_files import find_tokenizer
from mom_jax.paths import local_path
from mom_jax.training.balance import balanced_from
from mom_jax.training.checkpoint import (
    check_run_is_finite,
    checkpoint_folder,
    holds_weights_alone,
    read_config,
    read_position,
    restore,
    restore_params,
)
from mom_jax.training.config import TrainConfig, changes_between, flat
from mom_jax.training.extensions import OwnBatches
from mom_jax.training.folders import newest, set_aside
from mom_jax.training.processes import broadcast_from_first, is_first, together
from mom_jax.training.program import Program
from mom_jax.training.rewind import position_after_rewind
from mom_jax.training.run_places import at_hand
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


class Weights(NamedTuple):
    """Parameters that a new run starts with."""

    place: Path  # a checkpoint, or a published model
    config: TrainConfig  # of their model and tokenizer


class Origin(NamedTuple):
    """What a run goes on from."""

    step: int
    weights: Weights | None  # where it begins anew with other parameters than the initial ones
    notes: list[str]  # for the user: where it goes on, what has changed since, what was damaged


def find_origin(config: TrainConfig, loader: TrainLoader | OwnBatches) -> Origin:
    """The newest whole checkpoint, the same in all processes, which all call this; damaged ones are set aside.

    ``loader`` is moved to the checkpoint's place in the text.

    Raises:
        InputError: no checkpoint is whole, or the config or the text cannot go on from it.
    """
    folder, step, damaged = checkpoint_folder(config.folder), None, []
    with together():
        if is_first():  # it checks every byte for all
            step, damaged = newest(folder, set_aside)
    newest_step = broadcast_from_first(-1 if step is None else step)
    if newest_step < 0:
        return _new_run(config)
    with together():
        saved = read_config(folder, newest_step)
        if holds_weights_alone(folder, newest_step):
            weights = Weights(folder / str(newest_step), saved)
            free = {field: getattr(config.model, field) for field in _NOT_IN_WEIGHTS}
            changes_between(dataclasses.replace(config, model=dataclasses.replace(saved.model, **free)), config)
            return Origin(0, weights, [*damaged, f"starting from the weights in {config.run_dir}"])
        changes = changes_between(saved, config)
        position = position_after_rewind(folder.parent, newest_step) or read_position(folder, newest_step)
        loader.set_state(position)
    resuming = [f"resuming {config.run_dir} at step {newest_step}"] if newest_step < config.steps else []
    changed = [f"changed since: {', '.join(changes)}"] if changes else []
    return Origin(newest_step, None, [*damaged, *resuming, *changed])


def _new_run(config: TrainConfig) -> Origin:
    if config.init_from is None:
        return Origin(0, None, [])
    with together():
        weights = find_weights(config.init_from)
        _check_weights(weights, config)
        _check_tokenizer(weights, config)
    return Origin(0, weights, [f"starting from the weights in {weights.place}"])


def find_weights(place: str) -> Weights:
    """The parameters of a run's newest whole checkpoint, or of a published model; ``place`` may be an address.

    Raises:
        InputError: there are none, or every checkpoint is damaged.
    """
    with at_hand(place, field="init_from") as folder:
        return _weights_in(local_path(folder, "init_from"), place)


def _weights_in(source: Path, place: str) -> Weights:
    with named_as("init_from", "directory"):
        if is_published(source):
            tokenizer = find_tokenizer(source) or DataConfig.tokenizer
            return Weights(source, TrainConfig(model=read_published(source)[0], data=DataConfig(tokenizer=tokenizer)))
    if not source.is_dir():
        raise InputError("init_from", place, "no such folder; give a run's, or that of a published model")
    folder = checkpoint_folder(source)
    with named_as("init_from", "checkpoint"):
        step, _ = newest(folder, lambda _: "it stays there")
    if step is None:
        raise InputError("init_from", place, "holds no checkpoint; give a run's folder, or that of a published model")
    return Weights(folder / str(step), read_config(folder, step))


def _check_weights(weights: Weights, config: TrainConfig) -> None:
    """Raises `InputError` where the model is not the one of the weights."""
    ours, theirs = (flat(c.model.to_dict()) for c in (config, weights.config))
    names = {**ours, **theirs}
    different = [name for name in names if name not in _NOT_IN_WEIGHTS and ours.get(name) != theirs.get(name)]
    if different:
        listed = ", ".join(f"model.{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)" for name in different)
        remedy = f"holds the weights of another model: {listed}; leave these options out"
        raise InputError("init_from", config.init_from, remedy)


def _check_tokenizer(weights: Weights, config: TrainConfig) -> None:
    ours, theirs = config.data.tokenizer, weights.config.data.tokenizer
    if load_tokenizer(ours).fingerprint != load_tokenizer(theirs).fingerprint:
        remedy = f"is not the tokenizer of the weights in {config.init_from}, which is {theirs}; use that one"
        raise InputError("data.tokenizer", ours, remedy)


def first_state(program: Program, origin: Origin) -> TrainState:
    """The state before the first step of this sitting.

    Raises:
        InputError: the checkpoint cannot be read, or holds parameters that are not finite.
    """
    if origin.weights is not None:
        return _with_weights(program, origin.weights)
    if not origin.step:
        return program.init_state()
    folder = checkpoint_folder(program.config.folder)
    with together():
        state = restore(folder, origin.step, program)
    check_run_is_finite(state.params, folder / str(origin.step))
    return state


def _with_weights(program: Program, weights: Weights) -> TrainState:
    state = program.init_state()
    with together():
        if is_published(weights.place):
            with jax.set_mesh(program.mesh):
                params = nnx.to_pure_dict(nnx.state(load_pretrained(weights.place)))
        else:
            params = restore_params(
                weights.place.parent, int(weights.place.name), Program(weights.config, program.mesh)
            )
    params = balanced_from(state.params, params)
    check_run_is_finite(params, weights.place)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema)
