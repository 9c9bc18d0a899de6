"""A training run from start, or from its newest checkpoint, to its end."""

import dataclasses
import errno
import time
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from mom_jax.errors import DivergedError, InputError
from mom_jax.files import write_json
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.checkpoint import LOCK, Checkpoints, restore
from mom_jax.training.config import CONFIG_FILE, TrainConfig, flat
from mom_jax.training.extensions import NONE, Extensions
from mom_jax.training.log import RunLog
from mom_jax.training.loggers import check_installed, open_loggers
from mom_jax.training.mirror import check_address_of, mirrored
from mom_jax.training.origin import find_origin, first_state
from mom_jax.training.processes import any_process, check_same, is_first, shared_folder, together
from mom_jax.training.profile import Profile
from mom_jax.training.program import Program
from mom_jax.training.rewind import record_rewind
from mom_jax.training.saver import Saver
from mom_jax.training.sharding import check_fit, make_mesh, rows_of_process, shard_batch
from mom_jax.training.signals import StopRequest
from mom_jax.training.sittings import packages, record_sitting
from mom_jax.training.speed import Speed
from mom_jax.training.state import TrainState
from mom_jax.training.step import kept_train_step
from mom_jax.training.summary import Summary
from mom_jax.training.text import Text, open_text
from mom_jax.training.watchdog import Watchdog

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


def train(config: TrainConfig, evaluate: Evaluate, console: Console, own: Extensions = NONE) -> Outcome:
    """Trains until ``config.steps``, a signal or ``max_minutes``; a checkpoint is on disk when it returns.

    Args:
        config: the run. When its folder holds a checkpoint of the same config, the run resumes there.
        evaluate: gives the held-out loss, and more for the log; called every ``eval_every`` steps and at the end.
        console: where progress is shown.
        own: the caller's own parts.

    Raises:
        InputError: anything wrong with config, data, mesh or run folder; then nothing was written.
        DivergedError: ``max_bad_steps`` steps in a row, or all since the last checkpoint, had no finite loss, gradient
            and update.
        OSError: the disk is full.
    """
    started = time.monotonic()
    with together():
        check_installed(config)
        check_address_of(config)
        mesh = make_mesh(config.mesh)
        check_fit(config, mesh)
        text = open_text(config, own, rows_of_process(mesh))
    check_same(packages(), "install the same versions for all of them")
    check_same(flat(config.to_dict()), "start them all with the same options")
    config = config.anchored()
    check_same({"data.fingerprint": text.fingerprint}, "give them all the same text")
    with shared_folder(config.folder, LOCK) as run_dir, mirrored(config, run_dir) as (copying, fetched):
        origin = find_origin(config, text.loader)
        for note in (*text.notes, *fetched, *origin.notes):
            console.print(note, highlight=False, soft_wrap=True, markup=False)
        if origin.step >= config.steps:
            message = f"{config.run_dir} is already trained to step {origin.step}; raise --steps to go on"
            return Outcome(origin.step, True, message, 0.0)
        program = Program(config, mesh, dataclasses.replace(own, callbacks=(*own.callbacks, *copying)))
        state = first_state(program, origin)
        if is_first():
            write_json(run_dir / CONFIG_FILE, config.to_dict(), indent=2)
            record_sitting(run_dir, origin.step, _devices(), origin.notes)
        return _Sitting(program, text, evaluate, started, run_dir, console).run(state, origin.step)


def _devices() -> str:
    return f"{jax.device_count()} {jax.devices()[0].device_kind}"


class _Sitting:
    def __init__(
        self, program: Program, text: Text, evaluate: Evaluate, started: float, run_dir: Path, console: Console
    ):
        self.program, self.config, self.own, self.mesh = program, program.config, program.own, program.mesh
        self.text, self.evaluate, self.run_dir, self.console = text, evaluate, run_dir, console
        self.started, self.summary = started, Summary(started)
        self.stop, self.asked = StopRequest(), ""  # who asked to stop, besides signals
        self.watchdog, self.profile = Watchdog(self.config.watchdog_minutes), Profile(self.config.profile, run_dir)
        # The step up to which a record is to be written, and how often the text was read then.
        self.due: tuple[int, dict[str, float]] | None = None
        self.spike: int | None = None  # a step that is to be gone back behind
        self.rewinds = 0

    def run(self, state: TrainState, step: int) -> Outcome:
        self.first, self.step, self.state = step, step, state
        self.speed = Speed(self.config, jax.devices())
        with (
            jax.set_mesh(self.mesh),
            Checkpoints(self.config) as self.checkpoints,
            self.stop,
            self._open_log() as self.log,
            closing(self.watchdog),
            closing(self.profile),
        ):
            self.train_step = kept_train_step(self.program)
            self.saver = Saver(self.checkpoints, step, state)
            while self._goes_on():
                if self._train():
                    self._observe()
            self._record_due()
            if self.summary:
                self._record(self.step, self.text.epochs())
            skipped = self._save(ends=True)
            self.checkpoints.wait()
            self._tell_of_checkpoints()
        if self.step == self.config.steps and self.saver.newest != self.step:
            raise DivergedError(self.step, skipped, self.config.max_bad_steps)
        seconds = time.monotonic() - self.started
        return Outcome(self.step, self.step == self.config.steps, self._message(skipped), seconds)

    def _open_log(self) -> Any:
        if not is_first():
            return nullcontext()
        loggers = [*open_loggers(self.config, self.run_dir, self.step), *self.own.loggers]
        return RunLog(self.run_dir, self.step, self.config.steps, self.console, loggers)

    def _goes_on(self) -> bool:
        if self.step == self.config.steps or self.spike is not None:
            self._record_due()
        if self.spike is not None:
            self._rewind(self.spike)
        return self.step < self.config.steps and not self._must_stop()

    def _train(self) -> bool:
        """Starts a step, if there is a batch for it; while it runs, what the one before has shown is logged."""
        before = time.monotonic()
        try:
            batch = shard_batch(next(self.text.loader), self.mesh)
        except StopIteration:
            self.asked = "the end of its batches"
            return False
        self.summary.waited += time.monotonic() - before
        self.profile.before(self.step + 1, self.state)
        if jax.default_backend() == "cpu":  # runs a step before its start returns: its time would be that of the record
            self._record_due()
        self.state, metrics = self.train_step(self.state, batch)
        self._record_due()
        self.step += 1
        self.summary.add(metrics)
        if self.step == self.first + 1:  # compiled by now: the speed is measured from here
            jax.block_until_ready(metrics)
            self.summary.restart_clock()
        if self.profile.after(self.step, metrics):
            steps = self.config.profile.steps
            self._say(f"a trace of {steps} step{'s' * (steps > 1)} is in {self.run_dir / 'profile'}")
        self.watchdog.beat()
        self._call("on_step", self.step, metrics)
        return True

    def _observe(self) -> None:
        """Logs, evaluates and saves where it is time to."""
        step, ends = self.step, self.step == self.config.steps
        if step % self.config.log_every == 0 or ends:
            self.due = step, self.text.epochs()
        if step % self.config.eval_every == 0 or ends:
            self._evaluate()
        if step % self.config.checkpoint.every == 0 and not ends:
            self._save(ends=False)
        self._tell_of_checkpoints()

    def _must_stop(self) -> bool:
        limit = self.config.max_minutes
        # A sitting takes a step however long its start took, or a slow machine would never come further.
        late = limit is not None and self.step > self.first and time.monotonic() - self.started > 60 * limit
        requested = self.stop.signal is not None or bool(self.asked) or late
        if jax.process_count() == 1:
            return requested
        # Several processes end at the same step. They ask each other when they wait for the devices anyway.
        return self.step % self.config.log_every == 0 and any_process(requested)

    def _record_due(self) -> None:
        if self.due is not None:
            due, self.due = self.due, None
            self._record(*due)

    def _record(self, step: int, epochs: dict[str, float]) -> None:
        record, skipped, self.spike = self.summary.record(step)
        record |= epochs | self.speed.of(record)
        if self.log is not None:
            self.log.training(record)
        if "tokens" in record and not record["tokens"]:
            raise InputError("data.path", self.config.data.path, "has no token that follows another: nothing to learn")
        if skipped >= self.config.max_bad_steps:
            raise DivergedError(step, skipped, self.config.max_bad_steps)
        if not self.config.spikes.rewind:
            self.spike = None

    def _evaluate(self) -> None:
        self._record_due()
        if self.text.held_out is None:
            return
        model = self.program.parts.merge(self.state.params)
        scores = self.evaluate(model, (shard_batch(batch, self.mesh) for batch in self.text.held_out()))
        if self.log is not None:
            self.log.held_out(self.step, scores)
        self.summary.restart_clock()
        self.watchdog.beat()
        self._call("on_evaluate", self.step, scores)

    def _save(self, *, ends: bool) -> int:
        """Writes a checkpoint; says how many of the last steps were skipped, in a row."""
        self._record_due()
        try:
            return self.saver.save(self.step, self.state, self.text.loader.get_state(), ends=ends)
        except OSError as error:
            goes_on = self.config.checkpoint.on_full_disk == "go_on" and not ends
            if not goes_on or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            last = f"the newest one is of step {self.saver.newest}" if self.saver.newest else "there is none yet"
            self._say(f"warning: no checkpoint at step {self.step}: the disk is full; going on ({last})")
            return 0
        finally:
            self.summary.restart_clock()
            self.watchdog.beat()

    def _rewind(self, spike: int) -> None:
        """Goes back to the newest checkpoint that is old enough, and on with the text that comes now."""
        self.spike = None
        old_enough = [step for step in self.checkpoints.steps() if step <= spike - self.config.spikes.rewind]
        if not old_enough:
            self._say(f"step {spike} spiked; no checkpoint is {self.config.spikes.rewind} steps older: going on")
            return
        if self.rewinds == self.config.max_bad_steps:
            raise DivergedError(self.step, self.rewinds, self.config.max_bad_steps)
        back, self.rewinds = old_enough[-1], self.rewinds + 1
        note = f"step {spike} spiked: back to step {back}, and on with the text behind step {self.step}"
        if is_first():
            record_rewind(self.run_dir, back, spike, self.text.loader.get_state())
            record_sitting(self.run_dir, back, _devices(), [note])
        self.checkpoints.forget_after(back)
        self.state = restore(self.checkpoints.folder, back, self.program)
        self.step, self.summary, self.due = back, Summary(time.monotonic()), None
        self.saver = Saver(self.checkpoints, back, self.state)
        if self.log is not None:
            self.log.back_to(back)
        self._say(note)

    def _call(self, method: str, *arguments: Any) -> None:
        called = [getattr(callback, method)(*arguments) for callback in self.own.callbacks]
        if any(called):
            self.asked = "a callback"

    def _tell_of_checkpoints(self) -> None:
        for step in self.checkpoints.finished():
            self._call("on_checkpoint", step, self.checkpoints.folder / str(step))

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _message(self, skipped: int) -> str:
        place, step, newest = self.config.run_dir, self.step, self.saver.newest
        bad = f"; its last {skipped} steps were skipped, as their loss or gradient was not finite" if skipped else ""
        if step == self.config.steps:
            return f"trained {step} steps; the run is in {place}{bad}"
        saved = f"saved in {place}"
        if newest != step:
            saved = "nothing was saved" if newest is None else f"the checkpoint of step {newest} is in {place}"
        return f"stopped at step {step} by {self._why()}{bad}; {saved}: run the same command again to resume"

    def _why(self) -> str:
        if self.stop.signal is not None:
            return self.stop.name
        if self.asked:
            return self.asked
        limit = self.config.max_minutes
        return "another process" if limit is None else f"max_minutes={limit:g}"
