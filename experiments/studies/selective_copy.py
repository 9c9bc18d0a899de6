"""Items among blanks, said again in order (Gu and Dao, arXiv 2312.00752, section 3.1), by models of equal state.

    mom-jax experiment selective-copy --scale tiny       two CPU cores, about ten minutes
    mom-jax experiment selective-copy --scale paper      GPUs; spread it with --shard i/n

A model has to write items, pass over blanks, and tell the i-th marker from the others, which are the same token: it has
to count. The models are those of recall (`studies/mqar.py`): the mixture, one memory of its size, of equal active and
of equal total state, and attention. All but attention have short convolutions.

Tiny: 4 and 8 items of 14 in 32 tokens, two layers of width 32 with one head of 4 key and 8 value channels, 4 memories
of which 2 are chosen, one learning rate, three seeds.
Paper: 16 items of 14 in 4096 tokens, two layers of width 64, 400,000 steps of 64 rows, as Gu and Dao have it; memories
of 16 key and 32 value channels, and their learning rate and a larger one, of which the best by validation counts.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mom_jax.data.recall import selective_copy

from ..common.architectures import ARCHITECTURES, mixture
from ..common.seeds import Task, by_architecture, cells, draw, points_of, train
from ..common.standing import verdict
from ..registry import Experiment, Point, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items(Task):
    """What is to be said again."""

    task: str = "selective-copy"
    length: int
    items: int


TINY = tuple(
    Items(length=32, items=items, vocab=16, hidden_size=32, num_layers=2, head_dim=4, num_memories=4, steps=600,
          batch_size=32, questions=8)
    for items in (4, 8)
)  # fmt: skip
PAPER = Items(length=4096, items=16, vocab=16, hidden_size=64, num_layers=2, head_dim=16, num_memories=4,
              steps=400_000, batch_size=64, questions=16)  # fmt: skip
TINY_RATE = 1e-2
PAPER_RATES = (1e-4, 1e-3)


def points(scale: str) -> list[Point]:
    """Seed by seed, so that a sweep that is stopped early has compared all."""
    if scale == "paper":
        return points_of(PAPER, PAPER_RATES)
    made = [points_of(task, [TINY_RATE]) for task in TINY]
    return sorted((point for points in made for point in points), key=lambda point: point["seed"])


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains and scores one model."""
    make = functools.partial(selective_copy, length=point["length"], items=point["items"], vocab=point["vocab"])
    return train(point, dataclasses.replace(mixture(point), use_short_conv=True), make)


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy: mean, and each seed."""
    heading = ["items", "model", "accuracy", "each seed", "state", "active parameters"]
    rows = []
    for items, models in _by_items(records).items():
        for name, group in models.items():
            costs = [f"{group[0]['result'][cost]:,}" for cost in ("state", "activated")]
            rows.append([str(items), ARCHITECTURES[name][0], *cells(_accuracies(group)), *costs])
    return [heading, *rows]


def plot(records: list[Record], folder: Path) -> list[Path]:
    """Accuracy of every model: the mean, and a dot for every seed; a panel for each number of items."""
    groups = _by_items(records)
    figure = Figure(figsize=(6.0 * len(groups) + 0.4, 3.6), layout="constrained")
    for axes, (items, models) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        for place, (name, group) in enumerate(models.items()):
            draw(axes, name, [place], [_accuracies(group)])
        axes.set_xticks(range(len(models)), [ARCHITECTURES[name][0].replace(" ", "\n") for name in models])
        axes.set_title(f"{items} items in {records[0]['point']['length']} tokens")
    path = folder / "accuracy.png"
    figure.savefig(path, dpi=150)
    return [path]


def findings(records: list[Record]) -> list[str]:
    """The mixture's standing, by the number of items."""
    return [
        verdict(f"{items} items", {ARCHITECTURES[name][0]: _accuracies(group) for name, group in models.items()})
        for items, models in _by_items(records).items()
    ]


def _by_items(records: list[Record]) -> dict[int, dict[str, list[Record]]]:
    counts = sorted({record["point"]["items"] for record in records})
    return {n: by_architecture([r for r in records if r["point"]["items"] == n]) for n in counts}


def _accuracies(group: list[Record]) -> list[float]:
    return [record["result"]["accuracy"] for record in group]


EXPERIMENT = Experiment(points, run, plot, table, findings)
