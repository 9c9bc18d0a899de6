"""What experiments on synthetic tasks share: a model at its best learning rate, over several seeds; no experiment.

One point is a model of a task with all of its learning rates and seeds (`tuned`), one record its result. A run whose
accuracy is below `AT_CHANCE` times that of guessing has not learnt the task: it is counted as a failure to train, and
is no part of a mean, which is to say what a model can hold.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from mom_jax.models.config import MoMConfig

from ..registry import Contrast, Point, Record
from .architectures import ARCHITECTURES
from .statistics import mean_interval
from .tuned import kept, tuned

if TYPE_CHECKING:
    from .rows import Rows

AT_CHANCE = 1.5


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
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    together: int = 8  # models that are trained in one program
    test_rows: int = 512


def points_of(task: Task, architectures: "tuple[str, ...]") -> list[Point]:
    """The fields of a task's dataclass with every model."""
    lists = {"rates": list(task.rates), "seeds": list(task.seeds)}
    return [{**dataclasses.asdict(task), **lists, "architecture": name} for name in architectures]


def learned(point: Point, config: MoMConfig, rows: "Rows", models: Path, chance: float) -> dict[str, Any]:
    """The result of a point: `tuned`, with the accuracy of guessing (``chance``).

    Args:
        point: fields of `Task`.
        config: the model.
        rows: what it reads.
        models: where runs are kept.
        chance: accuracy of guessing.
    """
    from .synthetic import Training

    training = Training(0.0, point["steps"], point["batch_size"], 0, point["questions"], test_rows=point["test_rows"])
    train = kept(config, rows, training, models, point["together"])
    return {**tuned(train, point["rates"], point["seeds"]), "chance": chance}


def scores(record: Record, test: str = "") -> list[float]:
    """Accuracy of every seed, on other rows if their name is given; those at chance included."""
    return [run["tests"][test] if test else run["accuracy"] for run in record["result"]["runs"]]


def trained(record: Record, test: str = "") -> tuple[float, ...]:
    """Accuracies of the seeds that have learnt the task (by the rows of training)."""
    bar = AT_CHANCE * record["result"]["chance"]
    return tuple(s for s, own in zip(scores(record, test), scores(record), strict=True) if own > bar)


def cells(record: Record, test: str = "") -> list[str]:
    """Three cells of a table: the mean of the seeds that learnt with its interval, each seed, failures to train."""
    good, all_scores = trained(record, test), scores(record, test)
    failures = len(all_scores) - len(good)
    bar = AT_CHANCE * record["result"]["chance"]
    each = [f"{s:.3f}" if own > bar else f"({s:.3f})" for s, own in zip(all_scores, scores(record), strict=True)]
    mean = str(mean_interval(good).within(0, 1)) if good else "–"
    return [mean, " ".join(each), f"{failures} of {len(all_scores)}"]


CELLS = ["accuracy [95 %]", "each seed (at chance)", "failed to train"]


def rate_cell(record: Record) -> str:
    """The learning rate, and whether it is the best of those beside it."""
    result = record["result"]
    note = "" if result["inside"] else ", at the edge" if result["grid"] else ", not searched"
    return f"{result['learning_rate']:.3g}{note}"


# The questions that a model beside the mixture answers.
_ANSWERS = {"equal-active": ("active-state",), "equal-parameters": ("parameters",)}
_ANSWERS |= dict.fromkeys(("equal-total", "equal-total-keys", "equal-total-heads"), ("total-state",))


def beside_mixture(what: str, records: list[Record], test: str = "") -> list[Contrast]:
    """The mixture beside each other model, of the seeds that learnt the task."""
    models = {record["point"]["architecture"]: trained(record, test) for record in records}
    ours = models.pop("mom", ())
    return [
        Contrast(what, ARCHITECTURES["mom"][0], ARCHITECTURES[name][0], ours, theirs, questions=_ANSWERS.get(name, ()))
        for name, theirs in models.items()
        if ours and theirs
    ]


def course(record: Record) -> tuple[list[int], list[float]]:
    """Steps, and the mean validation loss of the seeds there; as far as all of them went."""
    each = [run["losses"] for run in record["result"]["runs"]]
    steps = [step for step, _ in min(each, key=len)]
    return steps, [float(np.mean([losses[i][1] for losses in each])) for i in range(len(steps))]


def late_fall(records: Mapping[str, Record]) -> str:
    """A sentence: whether training had come to an end. Records are named by their model."""
    fell = {name: _fall(record) for name, record in records.items()}
    most = max(fell, key=lambda name: fell[name])
    return (
        "In the last fifth of the steps, where the learning rate goes to zero, the mean validation loss fell by "
        f"{100 * min(fell.values()):.1f} to {100 * fell[most]:.1f} % (the most: {most})."
    )


def _fall(record: Record) -> float:
    """Share by which the mean validation loss fell in the last fifth of the steps; 0 where it rose."""
    _, losses = course(record)
    return max(0.0, 1 - losses[-1] / losses[-1 - len(losses) // 5])


def draw(axes: Axes, places: list[float], records: list[Record], test: list[str] | None = None, **look: Any) -> None:
    """Means with their intervals, joined by a line; a small cross for each run that stayed at chance."""
    names = test or [""] * len(records)
    shown = [(x, mean_interval(trained(r, t))) for x, r, t in zip(places, records, names, strict=True) if trained(r, t)]
    xs, means = [x for x, _ in shown], [m for _, m in shown]
    spread = [[min(1, m.value - max(0, m.low)) for m in means], [max(0, min(1, m.high) - m.value) for m in means]]
    axes.errorbar(xs, [m.value for m in means], spread, capsize=3, elinewidth=1, **look)
    for x, record, name in zip(places, records, names, strict=True):
        failed = [s for s in scores(record, name) if s not in trained(record, name)]
        axes.plot([x] * len(failed), failed, "x", color=look.get("color"), markersize=5)
