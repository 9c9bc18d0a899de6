"""Needles in texts longer than those of the training, by models of equal state; the paper has no such result.

    mom-jax experiment needles --scale tiny       two CPU cores, four minutes
    mom-jax experiment needles --scale medium     one GPU, a day

Six tasks of RULER's kinds (arXiv 2404.06654) in words of our own (`mom_jax.data.needles`), in bytes: one number in a
haystack, among other keys, several of one key, of several keys, variables handed on, and the most frequent words of a
list. A model is trained on one task at one length, answers counted byte by byte, and asked at that length and at longer
ones: only the haystack grows. The models are those of `studies/mqar.py` of equal state, with short convolutions.

Tiny: one number, 256 bytes, asked at 256 and 512. Medium: all six at 512, asked at 512 to 16,384; two layers of width
128 with one head of 32 key and 64 value channels, 4 memories of which 2 are chosen, 10,000 steps of 16 rows. There is
no small scale: what two cores can train in hours does not find a needle. A single memory of width 64 that had read one
number in 256 bytes 16,000 times (4 MB, half of the rows as two questions of 128 bytes) still drew its digits at random.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.data.needles import NEEDLES, needle_rows, needle_sample
from mom_jax.data.recall import RecallBatch
from mom_jax.data.tokenizer_kinds import ByteTokenizer
from mom_jax.drawing import legend_below

from ..common.architectures import ARCHITECTURES, COMPARED, architecture, mixture
from ..common.rows import Rows
from ..common.seeds import CELLS, Task, beside_mixture, cells, draw, learned, points_of, rate_cell
from ..common.tuned import GRID, SEEDS
from ..registry import Contrast, Experiment, Point, Record

TINY_LENGTHS, LENGTHS = (256, 512), (512, 1024, 2048, 4096, 8192, 16_384)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Task):
    """A task of `NEEDLES`, and the lengths at which it is asked, the first in training."""

    task: str = "mqar"  # plain tokens: models have short convolutions
    needle: str
    lengths: tuple[int, ...]
    vocab: int = ByteTokenizer.vocab_size


def answer_bytes(needle: str) -> str:
    """An answer of the task; all have the same form and length."""
    return needle_sample(needle, np.random.default_rng(0), ByteTokenizer(), 1024).answer


def _task(needle: str, lengths: tuple[int, ...], **sizes: Any) -> Needles:
    return Needles(needle=needle, lengths=lengths, questions=len(answer_bytes(needle)), num_memories=4, **sizes)


def points(scale: str) -> list[Point]:
    """Task by task, each with every model."""
    if scale == "tiny":
        tasks = [_task("single", TINY_LENGTHS, hidden_size=32, num_layers=1, head_dim=8, steps=25, batch_size=8,
                       rates=(3e-3,), seeds=(0, 1), test_rows=32)]  # fmt: skip
    else:
        tasks = [_task(needle, LENGTHS, hidden_size=128, num_layers=2, head_dim=32, steps=10_000, batch_size=16,
                       rates=GRID, seeds=SEEDS, test_rows=64) for needle in NEEDLES]  # fmt: skip
    return [{**p, "lengths": list(p["lengths"])} for task in tasks for p in points_of(task, COMPARED)]


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains a model at the first length, and asks it at all."""
    make = functools.partial(_rows, point["needle"])
    tests = {str(length): functools.partial(make, length=length) for length in point["lengths"]}
    config = dataclasses.replace(architecture(point["architecture"], mixture(point)), impl="xla")
    facts = {"task": "needles", "needle": point["needle"], "lengths": point["lengths"]}
    rows = Rows(facts, functools.partial(make, length=point["lengths"][0]), tests=tests)
    return learned(point, config, rows, models, guessing(point["needle"]))


def _rows(needle: str, rng: np.random.Generator, batch: int, length: int) -> RecallBatch:
    return needle_rows(needle, rng, batch, ByteTokenizer(), length)


def guessing(needle: str) -> float:
    """Share of an answer's bytes that is right by its form alone: spaces, commas, and one in ten of the rest."""
    answer = answer_bytes(needle)
    free = sum(character.isalnum() for character in answer)
    return 1 - 0.9 * free / len(answer)


def table(records: list[Record]) -> list[list[str]]:
    """Every model's share of right bytes at each length."""
    heading = ["task", "length", "model", *CELLS, "rate", "state"]
    rows = []
    for record in records:
        point, first = record["point"], record["result"]["runs"][0]
        for length in point["lengths"]:
            name = ARCHITECTURES[point["architecture"]][0]
            ends = [rate_cell(record), f"{first['state']:,}"]
            rows.append([point["needle"], f"{length:,}", name, *cells(record, str(length)), *ends])
    return [heading, *rows]


def plot(records: list[Record], folder: Path) -> list[Path]:
    """Right bytes against length, a panel for each task."""
    tasks = by_task(records)
    columns = min(3, len(tasks))
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.0 * -(-len(tasks) // columns) + 1.2), layout="constrained")
    grid = figure.subplots(-(-len(tasks) // columns), columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, (needle, group) in zip(grid.flat, tasks.items(), strict=False):
        for record, marker in zip(group, "os^DvP*X", strict=False):
            lengths = record["point"]["lengths"]
            label, colour = ARCHITECTURES[record["point"]["architecture"]]
            draw(axes, list(map(float, lengths)), [record] * len(lengths), list(map(str, lengths)), color=colour,
                 label=label, fmt=f"{marker}-", markersize=5)  # fmt: skip
        axes.set(title=needle.replace("_", " "), ylim=(0, 1.03), xlabel="length (bytes)")
        axes.set_xscale("log", base=2)
    grid[0][0].set_ylabel("right bytes of the answer")
    legend_below(figure, 3)
    path = folder / "length.png"
    figure.savefig(path, dpi=150)
    return [path]


def by_task(records: list[Record]) -> dict[str, list[Record]]:
    """Records by task."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["point"]["needle"], []).append(record)
    return groups


def contrasts(records: list[Record]) -> list[Contrast]:
    """The mixture beside every other model at the first and the last length."""
    return [
        contrast
        for needle, group in by_task(records).items()
        for length in (group[0]["point"]["lengths"][0], group[0]["point"]["lengths"][-1])
        for contrast in beside_mixture(f"needles, {needle}, {length:,} bytes, right bytes", group, str(length))
    ]


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, scales=("tiny", "medium"))
