"""What a run tells while it goes on: a progress line, ``metrics.jsonl`` and TensorBoard files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mom_jax.files import json_line, with_nan, write_atomically
from mom_jax.training.extensions import Logger
from mom_jax.training.records import read_records

METRICS_FILE = "metrics.jsonl"


class TrainingRecord(TypedDict):
    """Means over the steps since the record before, null where they were NaN."""

    step: int
    loss: float | None
    lm_loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    tokens_per_second: NotRequired[float | None]
    bad_total: float | None
    load: NotRequired[list[list[float | None]]]  # [L][M]
    routing_entropy: NotRequired[list[float | None]]  # [L]
    contribution: NotRequired[list[list[float | None]]]  # [L][G]
    dead_memories: NotRequired[list[int]]  # [L]


class HeldOutRecord(TypedDict):
    """An evaluation in training."""

    step: int
    held_out_loss: float | None
    routing_churn: NotRequired[list[float | None]]  # [L]


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl`` in order; none when there is no such file.

    A record holds ``step`` and either the training metrics (means over the steps since the record before, and
    ``dead_memories`` [L], how many of each layer got next to no tokens in these steps; where a layer has several
    routers, each counts as a layer), or those of an evaluation: ``held_out_loss`` in nats per token and, from the
    second evaluation of a sitting on, ``routing_churn`` [L], the
    share of tokens whose set of memories changed since the one before. A damaged line is left out, with a warning.
    """
    return [with_nan(record) for record in _read(Path(run_dir))[0]]


def _read(run_dir: Path) -> tuple[list[Any], int]:
    return read_records(run_dir / METRICS_FILE, TrainingRecord | HeldOutRecord)  # type: ignore[arg-type]


def _keep_until(run_dir: Path, step: int) -> None:
    path = run_dir / METRICS_FILE
    records, damaged = _read(run_dir)
    if damaged:
        path.rename(path.with_name(f"damaged-{METRICS_FILE}"))
    kept = [record for record in records if record["step"] <= step]
    write_atomically(path, "".join(map(json_line, kept)))


def time_left(seconds: float) -> str:
    """A duration as ``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _warning(dead: list[int]) -> str:
    """Which layers have dead memories, in few words; ``dead`` counts them by layer."""
    layers = [layer for layer, count in enumerate(dead) if count]
    if not layers:
        return ""
    named = ", ".join(map(str, layers[:4])) + ", ..." * (len(layers) > 4)
    memories, plural = ("memory" if sum(dead) == 1 else "memories"), "s" * (len(layers) > 1)
    return f"  warning: {sum(dead)} dead {memories} (layer{plural} {named})"


class RunLog:
    """Writes the metrics of one sitting of a run; a context manager.

    On a terminal one line is kept up to date; elsewhere each record is a line of its own.

    Args:
        run_dir: the run's folder, which exists.
        first_step: the step the sitting starts from; later records of an earlier sitting are dropped.
        steps: the run's last step.
        console: where the progress goes.
        loggers: get the records too; closed at the end.
    """

    def __init__(self, run_dir: Path, first_step: int, steps: int, console: Console, loggers: Sequence[Logger] = ()):
        from mom_jax.training.board import Board  # TensorBoard's files: who reads a model need not wait for them

        self._run_dir, self._console, self._steps, self._held_out = run_dir, console, steps, ""
        with ExitStack() as stack:
            for logger in loggers:
                stack.callback(logger.close)
            self._open_file(first_step)
            stack.callback(lambda: self._file.close())
            self._board = Board(run_dir / "tensorboard", first_step + 1)
            stack.callback(self._board.close)
            self._loggers = (self._board, *loggers)
            self._closing = stack.pop_all()
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=first_step, text="compiling ...")

    def _open_file(self, step: int) -> None:
        _keep_until(self._run_dir, step)
        self._file = (self._run_dir / METRICS_FILE).open("a", encoding="utf-8")

    def back_to(self, step: int) -> None:
        """Drops what was recorded of later steps, which the run takes again."""
        self._file.close()
        self._open_file(step)
        self._board.back_to(step)
        self._progress.update(self._task, completed=step)

    def __enter__(self) -> Self:
        self._progress.start()
        self._closing.callback(self._progress.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def training(self, record: dict[str, Any]) -> None:
        """Records training metrics; ``record`` holds ``step``, scalars, and lists per layer (and memory)."""
        self._write(record, "train")
        left = (self._steps - record["step"]) * record["seconds_per_step"]
        bad = f"  skipped {record['bad_total']:.0f}" if record["bad_total"] else ""
        speed = f"{record['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in record else ""
        epochs = f"  epoch {record['epochs']:.2f}" if record.get("epochs", 0) >= 1 else ""
        dead = _warning(record.get("dead_memories", []))
        text = f"loss {record['loss']:.4f}{self._held_out}  {speed}  {time_left(left)} left{epochs}{bad}{dead}"
        self._progress.update(self._task, completed=record["step"], text=text)
        if not self._console.is_terminal:
            self._console.print(f"step {record['step']}/{self._steps}  {text}", highlight=False, soft_wrap=True)

    def held_out(self, step: int, scores: dict[str, Any]) -> None:
        """Records an evaluation: ``held_out_loss`` in nats per token, other scalars, and lists per layer."""
        self._write({"step": step, **scores}, "held_out")
        self._held_out = f"  held-out {scores['held_out_loss']:.4f}"

    def _write(self, record: dict[str, Any], group: str) -> None:
        self._file.write(json_line(record))
        self._file.flush()
        metrics = {name: value for name, value in record.items() if name != "step"}
        for logger in self._loggers:
            logger.log(record["step"], metrics, group)
