"""Models trained alike and measured alike; no experiment by itself, what most tables of the paper are.

At the paper's scale a model is trained on SlimPajama and scored on sets of tasks. A small or tiny one is trained on
source code and scored by bits per byte of files held out, or trained on synthetic recall and scored by its accuracy.
Recall has one point for all rates and seeds of a model (`seeds.learned`), text one for each seed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mom_jax.models.config import MoMConfig
from mom_jax.training.config import TrainConfig

from ..registry import Contrast, Experiment, Point, Record
from .architectures import mixture
from .recall import TINY, Pairs, recalled, small
from .seeds import cells, rate_cell, scores, trained
from .statistics import mean_interval
from .text import SIZES, recipe


class Model(NamedTuple):
    """A model of a comparison: what it is made from, and how."""

    change: Callable[[MoMConfig], MoMConfig] = lambda mixture: mixture
    rule: str = "gated_deltanet"


def changed(**fields: Any) -> Model:
    """The mixture with other fields of its configuration."""
    return Model(lambda mixture: dataclasses.replace(mixture, **fields))


class Measure(NamedTuple):
    """What of a result counts."""

    title: str
    value: str  # its name in the result
    lower: bool = False  # is better


RECALL = {"tiny": TINY, "small": small(16)}  # the task of a scale
LONG = 4096  # bytes of a window for the measure ``long``
MEASURES = {
    "text": Measure("held-out text, bits per byte", "bits_per_byte", lower=True),
    "long": Measure("bits per byte, positions from 2,048 to 4,095", "late_bits_per_byte", lower=True),
    "recall": Measure("recall of pairs, accuracy", "accuracy"),
    "recall-tasks": Measure("recall tasks, average", "recall average"),
    "commonsense-tasks": Measure("commonsense tasks, average", "commonsense average"),
    "longbench-tasks": Measure("LongBench, average", "longbench average"),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models side by side.

    Attributes:
        models: by label; the first is the one that others are held against.
        tiny: measures of the tiny scale.
        small: measures of the small scale; recall alone unless given.
        paper: measures of the paper's scale, one seed; joined by ``+``, since a model is trained once for all. The two
            averages that the paper's ablations report unless given.
        sizes: of the paper's scale.
        recall_tasks: what models learn to recall, by scale.
        recall_layers: layers of the models that learn to recall.
        questions: of the page, which the comparison helps to answer.
        pairs: the models that are compared; the first and each other one unless given.
    """

    models: Mapping[str, Model]
    tiny: tuple[str, ...]
    small: tuple[str, ...] = ("recall",)
    paper: str = "recall-tasks+commonsense-tasks"
    sizes: tuple[str, ...] = SIZES["paper"][:1]
    recall_tasks: Mapping[str, Pairs] = dataclasses.field(default_factory=lambda: RECALL)
    recall_layers: int = 1
    questions: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that it has."""
        return ("tiny", *(("small",) if self.small else ()), "medium", "paper")

    @property
    def experiment(self) -> Experiment:
        """As the registry wants it."""
        return Experiment(
            self.points,
            self.run,
            self.plot,
            self.table,
            contrasts=self.contrasts,
            scales=self.scales,
            training=self.training,
        )

    def training(self, point: Point) -> TrainConfig | None:
        """The language model that a point trains; none for recall."""
        model = self.models[point["model"]]
        return None if point["measure"] == "recall" else recipe(point["size"], model.rule, model.change, point["seed"])

    def points(self, scale: str) -> list[Point]:
        """Measure by measure, seed by seed."""
        if scale in ("medium", "paper"):
            sizes = self.sizes if scale == "paper" else SIZES[scale]
            measures, seeds = (self.paper,), 1 if scale == "paper" else 3
        else:
            sizes, measures, seeds = (scale,), getattr(self, scale), 2 if scale == "tiny" else 3
        return [
            {"size": size, "measure": measure, "model": model, **facts}
            for size in sizes
            for measure in measures
            for facts in ([recall_facts(self.recall_tasks[size])] if measure == "recall" else
                          [{"seed": seed, **training_facts(size)} for seed in range(seeds)])
            for model in self.models
        ]  # fmt: skip

    def run(self, point: Point, models: Path) -> dict[str, Any]:
        """Trains a model, unless it has been trained before, and scores it."""
        from .text import held_out_scores, task_scores, trained

        model, measure, size = self.models[point["model"]], point["measure"], point["size"]
        if measure == "recall":
            return _recall(model, point, self.recall_layers, models)
        run_dir = trained(recipe(size, model.rule, model.change, point["seed"]), models)
        if measure == "long":
            scores = held_out_scores(run_dir, size, LONG)
            late = next(b["loss"] for b in scores["by_position"] if b["start"] == LONG // 2)
            return {"late_bits_per_byte": scores["bits_per_byte"] * late / scores["loss"], **scores}
        if measure == "text":
            return held_out_scores(run_dir, size, 512)
        scores = [task_scores(run_dir, part.removesuffix("-tasks")) for part in measure.split("+")]
        return {name: value for part_scores in scores for name, value in part_scores.items()}

    def table(self, records: list[Record]) -> list[list[str]]:
        """Mean with its interval and every seed of each measure, parameters (active, all), bytes of state."""
        rows = []
        for (size, measure), models in grouped(records).items():
            for model, group in models.items():
                result, rate = costs_of(group[0]), rate_cell(group[0]) if measure == "recall" else "–"
                costs = [f"{result[name]:,}" for name in ("activated", "parameters", "state")]
                rows.append([measure, size, model, *measured(measure, group), rate, *costs])
        heading = ["measure", "size", "model", "mean [95 %]", "each seed (at chance)", "failed to train", "rate"]
        return [[*heading, "active", "parameters", "state"], *rows]

    def contrasts(self, records: list[Record]) -> list[Contrast]:
        """The models of each pair, by measure."""
        name, *others = self.models
        pairs = self.pairs or [(name, other) for other in others]
        return [
            Contrast(_what(title, measure, models), first, other, ours, theirs, lower, self.questions)
            for (size, measure), models in grouped(records).items()
            for title, _, lower in [MEASURES[measure]]
            for first, other in pairs
            if (ours := good(measure, models.get(first, []))) and (theirs := good(measure, models.get(other, [])))
        ]

    def plot(self, records: list[Record]) -> dict[str, Figure]:
        """A panel for each measure: a dot for every seed, a bar at their mean, crosses for runs at chance."""
        groups = grouped(records)
        ours, *_ = self.models
        names = [name for name in self.models if any(name in models for models in groups.values())]
        figure = Figure(figsize=(4.2 * len(groups) + 1.2, 0.42 * len(names) + 1.6), layout="constrained")
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, ((size, measure), models) in zip(panels, groups.items(), strict=True):
            for model, group in models.items():
                learnt, place = good(measure, group), names.index(model)
                failed = [value for value in every(measure, group) if value not in learnt]
                colour = "C0" if model == ours else "C7"
                axes.plot(learnt, [place] * len(learnt), "o", color=colour, alpha=0.6, markersize=7)
                axes.plot(failed, [place] * len(failed), "x", color=colour, markersize=6)
                if learnt:
                    axes.plot([np.mean(learnt)], [place], "|", color=colour, markersize=20, markeredgewidth=2)
            better = "lower" if MEASURES[measure].lower else "higher"
            axes.set_xlabel(f"{MEASURES[measure].title} ({better} is better)")
            axes.set_title(size, fontsize=10)
        panels[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        return {"models": figure}


def training_facts(size: str) -> dict[str, Any]:
    """What of the training on text a point tells: sizes that, once changed, make another point."""
    config = recipe(size, "gated_deltanet", lambda mixture: mixture, 0)
    tokens = config.data.tokens_per_step
    return {"hidden_size": config.model.hidden_size, "steps": config.steps, "tokens_per_step": tokens}


def recall_facts(task: Pairs) -> dict[str, Any]:
    """A task with its rates and seeds."""
    return {**dataclasses.asdict(task), "rates": list(task.rates), "seeds": list(task.seeds)}


def _recall(model: Model, point: Point, layers: int, models: Path) -> dict[str, Any]:
    """The model on the point's task, as in `studies/capacity.py`."""
    config = mixture({**point, "rule": model.rule})
    return recalled(model.change(dataclasses.replace(config, num_hidden_layers=layers)), point, models)


def grouped(records: list[Record]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    """Records by (size, measure), then by model; seeds in order."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda r: r["point"].get("seed", 0)):
        point = record["point"]
        for measure in point["measure"].split("+"):
            groups.setdefault((point["size"], measure), {}).setdefault(point["model"], []).append(record)
    return groups


def every(measure: str, group: list[Record]) -> tuple[float, ...]:
    """What was measured of a model with every seed."""
    if measure == "recall":
        return tuple(scores(group[0]))
    return tuple(record["result"][MEASURES[measure].value] for record in group)


def good(measure: str, group: list[Record]) -> tuple[float, ...]:
    """The same of the seeds that learnt the task; none of no records."""
    return () if not group else trained(group[0]) if measure == "recall" else every(measure, group)


def _what(title: str, measure: str, models: dict[str, list[Record]]) -> str:
    """What is compared, and of which size."""
    point = next(iter(models.values()))[0]["point"]
    return f"recall of {point['pairs']} pairs, accuracy" if measure == "recall" else f"{title}, {point['size']}"


def costs_of(record: Record) -> dict[str, Any]:
    """A result that says what the model costs."""
    return record["result"]["runs"][0] if "runs" in record["result"] else record["result"]


def measured(measure: str, group: list[Record]) -> list[str]:
    """Three cells: the mean with its interval, every seed, failures to train."""
    if measure == "recall":
        return cells(group[0])
    values = every(measure, group)
    return [str(mean_interval(values)), " ".join(f"{value:.4g}" for value in values), "–"]
