"""A training run from start, or from its newest checkpoint, to its end."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
from mom_jax.files import write_json
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.parts import model_parts
from mom_jax.ops.router_statistics import dead_memories
from mom_jax.training.checkpoint import LOCK, Checkpoints
from mom_jax.training.config import CONFIG_FILE, TrainConfig, flat
from mom_jax.training.log import RunLog
from mom_jax.training.origin import find_origin, first_state
from mom_jax.training.processes import any_process, check_same, is_first, shared_folder, together
from mom_jax.training.sharding import check_fit, make_mesh, shard_batch
from mom_jax.training.signals import StopRequest
from mom_jax.training.sittings import record_sitting
from mom_jax.training.state import TrainState
from mom_jax.training.step import make_train_step

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
        InputError: anything wrong with config, data, mesh or run folder (then nothing was written), or
            ``max_bad_steps`` steps in a row without a finite loss and gradient.
        OSError: the disk is full.
    """
    started = time.monotonic()
    with together():
        mesh = make_mesh(config.mesh)
        check_fit(config, mesh)
        check_vocabulary(config)
        data = prepared(config.data)
        loader = train_loader(data, config.data, jax.process_index(), jax.process_count())
    check_same(flat(config.to_dict()), "start them all with the same options")
    config = config.anchored()
    check_same({"data.fingerprint": data.fingerprint}, "give them all the same text")
    with shared_folder(config.run_dir, LOCK) as run_dir:
        origin = find_origin(config)
        if origin.step >= config.steps:
            told = f"{config.run_dir} is already trained to step {origin.step}; raise --steps to go on"
            return Outcome(origin.step, True, told, 0.0)
        for note in (*data.notes, *origin.notes):
            console.print(note, highlight=False, soft_wrap=True, markup=False)
        state = first_state(config, origin, mesh, loader)
        if is_first():
            write_json(run_dir / CONFIG_FILE, config.to_dict(), indent=2)
            devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
            record_sitting(run_dir, origin.step, devices, origin.notes)
        sitting = _Sitting(config, mesh, data, loader, evaluate, started)
        return sitting.run(state, origin.step, console)


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
        self.saved: int | None = None  # step of the newest checkpoint, and how many updates it holds
        self.updates_saved = 0
        self.pending: list[dict[str, jax.Array]] = []  # metrics that are still on the device
        self.clock = _Clock(started)

    def run(self, state: TrainState, step: int, console: Console) -> Outcome:
        config = self.config
        train_step = make_train_step(config, self.mesh)
        run_dir = Path(config.run_dir).expanduser()
        first = step
        self.saved, self.updates_saved = step or None, step - int(jax.device_get(state.bad_total))
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
                    self._save(checkpoints, step, state, ends=False)
                    self.clock.restart()
            if self.pending:
                self._log(step, log)
            if step == first and stop.signal is None and jax.process_count() == 1:
                remedy = "was over before the first step; raise it (text that is prepared by now stays prepared)"
                raise InputError("max_minutes", config.max_minutes, remedy)
            skipped = self._save(checkpoints, step, state, ends=True)
            checkpoints.wait()
        return Outcome(step, step == config.steps, self._message(step, stop, skipped), time.monotonic() - self.started)

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState, *, ends: bool) -> int:
        """Writes a checkpoint, unless the last steps were skipped: it would push out one that is as good.

        At the sitting's end it is written for the updates before those, if there were any since the last checkpoint.

        Returns:
            how many of the last steps were skipped, in a row.
        """
        skipped, total = map(int, jax.device_get((state.bad_steps, state.bad_total)))
        updates = step - total
        if skipped and not (ends and updates > self.updates_saved):
            if ends and step == self.config.steps:
                raise diverged(self.config, step, skipped)
            return skipped
        checkpoints.save(step, state, self.loader.get_state())
        self.saved, self.updates_saved = step, updates
        return skipped

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
        if not tokens:
            raise InputError("data.path", self.config.data.path, "has no token that follows another: nothing to learn")
        if worst >= self.config.max_bad_steps:
            raise diverged(self.config, step, worst)

    def _evaluate(self, step: int, state: TrainState, log: RunLog | None) -> None:
        batches = eval_batches(
            self.data, self.config.data, jax.process_index(), jax.process_count(), max_windows=self.config.eval_windows
        )
        scores = self.evaluate(self.parts.merge(state.params), (shard_batch(batch, self.mesh) for batch in batches))
        if log is not None:
            log.held_out(step, scores)
        self.clock.restart()

    def _message(self, step: int, stop: StopRequest, skipped: int) -> str:
        place = self.config.run_dir
        bad = f"; its last {skipped} steps were skipped, for want of a finite loss or gradient" if skipped else ""
        if step == self.config.steps:
            return f"trained {step} steps; the run is in {place}{bad}"
        if stop.signal is not None:
            why = signal.Signals(stop.signal).name
        else:
            limit = self.config.max_minutes
            why = "another process" if limit is None else f"max_minutes={limit:g}"
        saved = f"saved in {place}"
        if self.saved != step:
            saved = "nothing was saved" if self.saved is None else f"the checkpoint of step {self.saved} is in {place}"
        return f"stopped at step {step} by {why}{bad}; {saved}: run the same command again to resume"


def diverged(config: TrainConfig, step: int, skipped: int) -> InputError:
    """The error of a run whose last ``skipped`` steps up to ``step`` gave nothing to learn from."""
    remedy = (
        f"{skipped} steps in a row up to step {step} had a non-finite loss or gradient and were skipped; "
        "lower optimizer.learning_rate or look at the data, then run again to continue from the last checkpoint"
    )
    return InputError("max_bad_steps", config.max_bad_steps, remedy)
