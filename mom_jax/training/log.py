"""What a run tells while it goes on: a progress line, ``metrics.jsonl`` and TensorBoard files."""

import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl`` in order; none when there is no such file.

    A record holds ``step`` and either the training metrics (means over the steps since the record before, and
    ``dead_memories`` [L], how many of each layer got next to no tokens in these steps), or those of an evaluation:
    ``held_out_loss`` in nats per token and, from the second evaluation of a sitting on, ``routing_churn`` [L], the
    share of tokens whose set of memories changed since the one before. A line that a crash cut short is left out.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _keep_until(run_dir: Path, step: int) -> None:
    kept = [record for record in read_metrics(run_dir) if record["step"] <= step]
    temporary = run_dir / f".{METRICS_FILE}.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(temporary, run_dir / METRICS_FILE)


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
    """

    def __init__(self, run_dir: Path, first_step: int, steps: int, console: Console):
        _keep_until(run_dir, first_step)
        self._console, self._steps, self._held_out = console, steps, ""
        self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=first_step, text="compiling ...")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._board.close()
        self._file.close()

    def training(self, record: dict[str, Any]) -> None:
        """Records training metrics; ``record`` holds ``step``, scalars, and lists per layer (and memory)."""
        self._write(record, "train")
        left = (self._steps - record["step"]) * record["seconds_per_step"]
        bad = f"  skipped {record['bad_total']:.0f}" if record["bad_total"] else ""
        speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        dead = _warning(record.get("dead_memories", []))
        text = f"loss {record['loss']:.4f}{self._held_out}  {speed}  {time_left(left)} left{bad}{dead}"
        self._progress.update(self._task, completed=record["step"], text=text)
        if not self._console.is_terminal:
            self._console.print(f"step {record['step']}/{self._steps}  {text}", highlight=False, soft_wrap=True)

    def held_out(self, step: int, scores: dict[str, Any]) -> None:
        """Records an evaluation: ``held_out_loss`` in nats per token, other scalars, and lists per layer."""
        self._write({"step": step, **scores}, "held_out")
        self._held_out = f"  held-out {scores['held_out_loss']:.4f}"

    def _write(self, record: dict[str, Any], group: str) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            values = np.asarray(value)
            labels = ("layer", "memory")[: values.ndim]
            for index in np.ndindex(values.shape):
                tag = "/".join([group, name, *(f"{label}_{i}" for label, i in zip(labels, index, strict=True))])
                if name != "step":
                    self._board.add_scalar(tag, float(values[index]), record["step"])
