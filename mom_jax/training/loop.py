"""A training run from start, or from its newest checkpoint, to its end."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from mom_jax.data.loader import TrainLoader, eval_batches, train_loader
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import check_rows, load_tokenizer
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.parts import model_parts
from mom_jax.ops.router_statistics import dead_memories
from mom_jax.training.balance import balanced_from
from mom_jax.training.checkpoint import (
    Checkpoints,
    checkpoint_folder,
    holds_weights_alone,
    latest_step,
    read_config,
    restore,
    restore_params,
)
from mom_jax.training.config import CONFIG_FILE, TrainConfig, check_same_run, flat
from mom_jax.training.log import RunLog
from mom_jax.training.processes import any_process, check_same, is_first, together
from mom_jax.training.sharding import check_fit, make_mesh, shard_batch
from mom_jax.training.signals import StopRequest
from mom_jax.training.sittings import record_sitting
from mom_jax.training.state import TrainState, init_state
from mom_jax.training.step import make_train_step

# Scores of a model over batches of global arrays, the same ones each time: ``held_out_loss`` in nats per token, and
# whatever else the log shall hold.
Evaluate = Callable[[MoMForCausalLM, Iterable[dict[str, jax.Array]]], dict[str, Any]]

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
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sitting ended."""

    step: int
    finished: bool  # all steps are done
    message: str  # one line for the user
    seconds: float


def check_vocabulary(config: TrainConfig) -> None:
    """Raises `InputError` when the tokenizer has more tokens than the model has rows for."""
    tokens = load_tokenizer(config.data.tokenizer).vocab_size
    remedy = f"train a new model with --model.vocab-size {tokens}, or name the tokenizer of this one"
    check_rows(config.data.tokenizer, tokens, config.model.vocab_size, remedy)


def train(config: TrainConfig, evaluate: Evaluate, console: Console) -> Outcome:
    """Trains until ``config.steps``, a signal or ``max_minutes``; a checkpoint is on disk when it returns.

    Args:
        config: the run. When its folder holds a checkpoint of the same config, the run resumes there.
        evaluate: gives the held-out loss, and more for the log; called every ``eval_every`` steps and at the end.
        console: where progress is shown.

    Raises:
        InputError: anything wrong with config, data, mesh or run folder (then nothing was written), or
            ``max_bad_steps`` steps in a row without a finite loss and gradient.
        OSError: the disk is full.
    """
    started = time.monotonic()
    mesh = make_mesh(config.mesh)
    with together():
        check_fit(config, mesh)
        check_vocabulary(config)
        data = prepared(config.data)
        loader = train_loader(data, config.data, jax.process_index(), jax.process_count())
        origin = _origin(config)
    check_same(flat(config.to_dict()), "start them all with the same options")
    config = config.anchored()
    check_same({"data.fingerprint": data.fingerprint}, "give them all the same text")
    check_same({"checkpoint": origin.step}, f"{config.run_dir} must be one folder that they all share")
    if origin.step >= config.steps:
        told = f"{config.run_dir} is already trained to step {origin.step}; raise --steps to go on"
        return Outcome(origin.step, True, told, 0.0)
    for line in filter(None, (*data.notes, origin.told)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    state = _first_state(config, origin, mesh, loader)
    if is_first():
        _write_config(config)
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        record_sitting(Path(config.run_dir).expanduser(), origin.step, devices)
    sitting = _Sitting(config, mesh, data, loader, evaluate, started)
    return sitting.run(state, origin.step, console)


class _Origin(NamedTuple):
    """What a run goes on from."""

    step: int
    saved: TrainConfig | None  # the config of the checkpoint, if there is one
    weights_alone: bool
    told: str  # the same in words for the user


def _origin(config: TrainConfig) -> _Origin:
    """The newest checkpoint, verified; `InputError` where the config cannot go on from it."""
    folder = checkpoint_folder(config.run_dir)
    step = latest_step(folder)
    if step is None:
        return _Origin(0, None, False, "")
    saved = read_config(folder, step)
    if holds_weights_alone(folder, step):
        free = {field: getattr(config.model, field) for field in _NOT_IN_WEIGHTS}
        check_same_run(dataclasses.replace(config, model=dataclasses.replace(saved.model, **free)), config)
        return _Origin(0, saved, True, f"starting from the weights in {config.run_dir}")
    check_same_run(saved, config)
    return _Origin(step, saved, False, f"resuming {config.run_dir} at step {step}")


def _first_state(config: TrainConfig, origin: _Origin, mesh: Mesh, loader: TrainLoader) -> TrainState:
    """The state before the first step of this sitting; ``loader`` is moved to its place."""
    folder = checkpoint_folder(config.run_dir)
    if origin.saved is None:
        return init_state(config, mesh)
    if origin.weights_alone:
        state = init_state(config, mesh)
        params = restore_params(folder, origin.step, origin.saved, mesh)
        return dataclasses.replace(state, params=balanced_from(state.params, params))
    state, position = restore(folder, origin.step, config, mesh)
    loader.set_state(position)
    return state


def _write_config(config: TrainConfig) -> None:
    run_dir = Path(config.run_dir).expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / f".{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, run_dir / CONFIG_FILE)


@dataclasses.dataclass
class _Clock:
    """Speed since the last record; evaluation and checkpoints are not counted."""

    since: float
    steps: int = 0

    def restart(self) -> None:
        self.since, self.steps = time.monotonic(), 0


class _Sitting:
    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        data: PreparedData,
        loader: TrainLoader,
        evaluate: Evaluate,
        started: float,
    ):
        self.config, self.mesh, self.data, self.loader, self.evaluate = config, mesh, data, loader, evaluate
        self.started, self.parts = started, model_parts(config.model)
        self.pending: list[dict[str, jax.Array]] = []  # metrics that are still on the device
        self.clock = _Clock(started)

    def run(self, state: TrainState, step: int, console: Console) -> Outcome:
        config = self.config
        train_step = make_train_step(config, self.mesh)
        run_dir = Path(config.run_dir).expanduser()
        first = step
        with (
            jax.set_mesh(self.mesh),
            Checkpoints(config) as checkpoints,
            StopRequest() as stop,
            RunLog(run_dir, step, config.steps, console) if is_first() else nullcontext() as log,
        ):
            while step < config.steps and not self._must_stop(step, stop):
                state, metrics = train_step(state, shard_batch(next(self.loader), self.mesh))
                step += 1
                self.pending.append(metrics)
                self.clock.steps += 1
                if step == first + 1:  # compiled by now: the speed is measured from here
                    jax.block_until_ready(metrics)
                    self.clock.restart()
                ends = step == config.steps
                if step % config.log_every == 0 or ends:
                    self._log(step, log)
                if step % config.eval_every == 0 or ends:
                    self._evaluate(step, state, log)
                if step % config.checkpoint.every == 0 and not ends:
                    checkpoints.save(step, state, self.loader.get_state())
                    self.clock.restart()
            if self.pending:
                self._log(step, log)
            checkpoints.save(step, state, self.loader.get_state())
            checkpoints.wait()
        return Outcome(step, step == config.steps, self._message(step, stop), time.monotonic() - self.started)

    def _must_stop(self, step: int, stop: StopRequest) -> bool:
        limit = self.config.max_minutes
        wanted = stop.signal is not None or (limit is not None and time.monotonic() - self.started > 60 * limit)
        if jax.process_count() == 1:
            return wanted
        # Several processes end at the same step. They ask each other when they wait for the devices anyway.
        return step % self.config.log_every == 0 and any_process(wanted)

    def _log(self, step: int, log: RunLog | None) -> None:
        records = jax.device_get(self.pending)
        self.pending = []
        if self.clock.steps:
            seconds = (time.monotonic() - self.clock.since) / self.clock.steps
        else:  # the very first step, compilation included
            seconds = time.monotonic() - self.started
        worst = max(int(record["bad_steps"]) for record in records)
        tokens = float(np.mean([record["tokens"] for record in records]))
        means = {
            name: np.mean([record[name] for record in records], axis=0).tolist()
            for name in records[0]
            if name != "bad_steps"
        }
        dead = {"dead_memories": dead_memories(jnp.asarray(means["load"])).sum(-1).tolist()} if "load" in means else {}
        if log is not None:
            log.training(
                {
                    "step": step,
                    **means,
                    **dead,
                    "bad_total": int(records[-1]["bad_total"]),
                    "seconds_per_step": seconds,
                    "tokens_per_second": tokens / seconds,
                }
            )
        self.clock.restart()
        if worst >= self.config.max_bad_steps:
            raise InputError(
                "max_bad_steps",
                self.config.max_bad_steps,
                f"{worst} steps in a row up to step {step} had a non-finite loss "
                "or gradient and were skipped; lower optimizer.learning_rate or look at the data, then run again to "
                "continue from the last checkpoint",
            )

    def _evaluate(self, step: int, state: TrainState, log: RunLog | None) -> None:
        batches = eval_batches(
            self.data, self.config.data, jax.process_index(), jax.process_count(), max_windows=self.config.eval_windows
        )
        scores = self.evaluate(self.parts.merge(state.params), (shard_batch(batch, self.mesh) for batch in batches))
        if log is not None:
            log.held_out(step, scores)
        self.clock.restart()

    def _message(self, step: int, stop: StopRequest) -> str:
        if step == self.config.steps:
            return f"trained {step} steps; the run is in {self.config.run_dir}"
        if stop.signal is not None:
            why = signal.Signals(stop.signal).name
        else:
            limit = self.config.max_minutes
            why = "another process" if limit is None else f"max_minutes={limit:g}"
        return f"stopped at step {step} by {why}; saved in {self.config.run_dir}: run the same command again to resume"
