"""What experiments share that compare the same models over several seeds; no experiment by itself."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from mom_jax.models.config import MoMConfig

from ..registry import Point, Record
from .architectures import ARCHITECTURES, architecture

if TYPE_CHECKING:
    from .synthetic import Maker

# those of recall that are compared at equal state
COMPARED = ("mom", "single", "equal-active", "equal-total", "attention")
SEEDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What of a synthetic task all have, and the models for it. The fields become those of a point."""

    task: str
    vocab: int
    hidden_size: int
    num_layers: int
    head_dim: int
    num_memories: int
    steps: int
    batch_size: int
    questions: int  # see `synthetic.Training`


def points_of(task: Task, rates: Iterable[float]) -> list[Point]:
    """The fields of a task's dataclass with every model and learning rate, seed by seed."""
    rates = tuple(rates)
    return [
        {**dataclasses.asdict(task), "architecture": name, "learning_rate": rate, "seed": seed}
        for seed in range(SEEDS)
        for name in COMPARED
        for rate in rates
    ]


def train(
    point: Point, mixture: MoMConfig, make: "Maker", tests: "Mapping[str, Maker] | None" = None
) -> dict[str, Any]:
    """Trains and scores the model of a point beside its mixture; see `synthetic.train_and_score`."""
    from .synthetic import Training, train_and_score

    training = Training(*(point[name] for name in ("learning_rate", "steps", "batch_size", "seed", "questions")))
    return train_and_score(architecture(point["architecture"], mixture), make, training, tests)


def best(records: list[Record], key: Callable[[Point], Any]) -> dict[Any, list[Record]]:
    """Records by key, in order of their seeds: those of the learning rate with the best mean validation."""
    by_rate: dict[Any, dict[float, list[Record]]] = {}
    for record in sorted(records, key=lambda r: r["point"]["seed"]):
        point = record["point"]
        by_rate.setdefault(key(point), {}).setdefault(point["learning_rate"], []).append(record)
    return {
        name: max(rates.values(), key=lambda group: np.mean([r["result"]["validation"] for r in group]))
        for name, rates in by_rate.items()
    }


def by_architecture(records: list[Record]) -> dict[str, list[Record]]:
    """The `best` records of each model, in the order of `COMPARED`."""
    groups = best(records, lambda point: point["architecture"])
    return {name: groups[name] for name in COMPARED if name in groups}


def cells(accuracies: list[float]) -> list[str]:
    """Two cells of a table: the mean, and each seed."""
    return [f"{np.mean(accuracies):.3f}", " ".join(f"{accuracy:.3f}" for accuracy in accuracies)]


def draw(axes: Axes, name: str, places: list[float], accuracies: list[list[float]]) -> None:
    """A model's mean accuracy at each place, joined by a line, and a dot for each seed."""
    label, colour = ARCHITECTURES[name]
    axes.plot(places, [np.mean(seeds) for seeds in accuracies], "o-", color=colour, label=label, markersize=7)
    for place, seeds in zip(places, accuracies, strict=True):
        axes.plot([place] * len(seeds), seeds, ".", color=colour, markersize=5, alpha=0.6)
    axes.set(ylim=(-0.03, 1.03), ylabel="accuracy")
    axes.grid(alpha=0.25)
