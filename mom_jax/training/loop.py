"""A training run from start, or from its newest checkpoint, to its end."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from mom_jax.data.loader import TrainLoader, eval_batches, train_loader
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import check_rows, load_tokenizer
from mom_jax.errors import DivergedError, InputError
from mom_jax.files import write_json
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.checkpoint import LOCK, Checkpoints
from mom_jax.training.config import CONFIG_FILE, TrainConfig, flat
from mom_jax.training.log import RunLog
from mom_jax.training.origin import find_origin, first_state
from mom_jax.training.processes import any_process, check_same, is_first, shared_folder, together
from mom_jax.training.program import Program
from mom_jax.training.saver import Saver
from mom_jax.training.sharding import check_fit, make_mesh, rows_of_process, shard_batch
from mom_jax.training.signals import StopRequest
from mom_jax.training.sittings import record_sitting
from mom_jax.training.state import TrainState
from mom_jax.training.step import make_train_step
from mom_jax.training.summary import Summary

# Scores of a model over batches of global arrays, the same ones each time: ``held_out_loss`` in nats per token, and
# whatever else the log shall hold.
Evaluate = Callable[[MoMForCausalLM, Iterable[dict[str, jax.Array]]], dict[str, Any]]


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
        InputError: anything wrong with config, data, mesh or run folder; then nothing was written.
        DivergedError: ``max_bad_steps`` steps in a row, or all since the last checkpoint, had no finite loss, gradient
            and update.
        OSError: the disk is full.
    """
    started = time.monotonic()
    with together():
        mesh = make_mesh(config.mesh)
        check_fit(config, mesh)
        check_vocabulary(config)
        data = prepared(config.data)
        rows = rows_of_process(mesh)
        loader = train_loader(data, config.data, rows.index, rows.count)
    check_same(flat(config.to_dict()), "start them all with the same options")
    config = config.anchored()
    check_same({"data.fingerprint": data.fingerprint}, "give them all the same text")
    with shared_folder(config.run_dir, LOCK) as run_dir:
        origin = find_origin(config, loader)
        for note in (*data.notes, *origin.notes):
            console.print(note, highlight=False, soft_wrap=True, markup=False)
        if origin.step >= config.steps:
            message = f"{config.run_dir} is already trained to step {origin.step}; raise --steps to go on"
            return Outcome(origin.step, True, message, 0.0)
        program = Program(config, mesh)
        state = first_state(program, origin)
        if is_first():
            write_json(run_dir / CONFIG_FILE, config.to_dict(), indent=2)
            devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
            record_sitting(run_dir, origin.step, devices, origin.notes)
        return _Sitting(program, data, loader, evaluate, started).run(run_dir, state, origin.step, console)


class _Sitting:
    def __init__(self, program: Program, data: PreparedData, loader: TrainLoader, evaluate: Evaluate, started: float):
        self.program, self.config, self.mesh = program, program.config, program.mesh
        self.data, self.loader, self.evaluate = data, loader, evaluate
        self.started, self.summary = started, Summary(started)

    def run(self, run_dir: Path, state: TrainState, step: int, console: Console) -> Outcome:
        config, first, train_step = self.config, step, make_train_step(self.program)
        with (
            jax.set_mesh(self.mesh),
            Checkpoints(config) as checkpoints,
            StopRequest() as stop,
            RunLog(run_dir, step, config.steps, console) if is_first() else nullcontext() as log,
        ):
            saver = Saver(checkpoints, step, state)
            while step < config.steps and not self._must_stop(step, stop):
                state, metrics = train_step(state, shard_batch(next(self.loader), self.mesh))
                step += 1
                self.summary.add(metrics)
                if step == first + 1:  # compiled by now: the speed is measured from here
                    jax.block_until_ready(metrics)
                    self.summary.restart_clock()
                ends = step == config.steps
                if step % config.log_every == 0 or ends:
                    self._log(step, log)
                if step % config.eval_every == 0 or ends:
                    self._evaluate(step, state, log)
                if step % config.checkpoint.every == 0 and not ends:
                    saver.save(step, state, self.loader.get_state(), ends=False)
                    self.summary.restart_clock()
            if self.summary:
                self._log(step, log)
            if step == first and stop.signal is None and jax.process_count() == 1:
                remedy = "ended before the first step; raise it (text prepared so far stays prepared)"
                raise InputError("max_minutes", config.max_minutes, remedy)
            skipped = saver.save(step, state, self.loader.get_state(), ends=True)
            checkpoints.wait()
        if step == config.steps and saver.newest != step:
            raise DivergedError(step, skipped, config.max_bad_steps)
        message = self._message(step, stop, skipped, saver.newest)
        return Outcome(step, step == config.steps, message, time.monotonic() - self.started)

    def _must_stop(self, step: int, stop: StopRequest) -> bool:
        limit = self.config.max_minutes
        requested = stop.signal is not None or (limit is not None and time.monotonic() - self.started > 60 * limit)
        if jax.process_count() == 1:
            return requested
        # Several processes end at the same step. They ask each other when they wait for the devices anyway.
        return step % self.config.log_every == 0 and any_process(requested)

    def _log(self, step: int, log: RunLog | None) -> None:
        record, skipped = self.summary.record(step)
        if log is not None:
            log.training(record)
        if not record["tokens"]:
            raise InputError("data.path", self.config.data.path, "has no token that follows another: nothing to learn")
        if skipped >= self.config.max_bad_steps:
            raise DivergedError(step, skipped, self.config.max_bad_steps)

    def _evaluate(self, step: int, state: TrainState, log: RunLog | None) -> None:
        rows = rows_of_process(self.mesh)
        batches = eval_batches(
            self.data, self.config.data, rows.index, rows.count, max_windows=self.config.eval_windows
        )
        model = self.program.parts.merge(state.params)
        scores = self.evaluate(model, (shard_batch(batch, self.mesh) for batch in batches))
        if log is not None:
            log.held_out(step, scores)
        self.summary.restart_clock()

    def _message(self, step: int, stop: StopRequest, skipped: int, newest: int | None) -> str:
        place = self.config.run_dir
        bad = f"; its last {skipped} steps were skipped, as their loss or gradient was not finite" if skipped else ""
        if step == self.config.steps:
            return f"trained {step} steps; the run is in {place}{bad}"
        if stop.signal is not None:
            why = signal.Signals(stop.signal).name
        else:
            limit = self.config.max_minutes
            why = "another process" if limit is None else f"max_minutes={limit:g}"
        saved = f"saved in {place}"
        if newest != step:
            saved = "nothing was saved" if newest is None else f"the checkpoint of step {newest} is in {place}"
        return f"stopped at step {step} by {why}{bad}; {saved}: run the same command again to resume"
