"""Models trained alike and measured alike; no experiment by itself, what most tables of the paper are.

At the paper's scale a model is trained on SlimPajama and scored on sets of tasks. A tiny one is trained on source
code and scored by bits per byte of files held out, or trained on synthetic recall and scored by its accuracy there.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import get_preset, with_rule

from ..registry import Experiment, Point, Record
from .architectures import mixture
from .recall import TINY, TINY_RATES, recalled
from .standing import standing, verdict
from .text import SIZES, recipe


class Model(NamedTuple):
    """A model of a comparison: what it is made from, and how."""

    change: Callable[[MoMConfig], MoMConfig] = lambda mixture: mixture
    rule: str = "gated_deltanet"


class Measure(NamedTuple):
    """What of a result counts."""

    title: str
    value: str  # its name in the result
    lower: bool = False  # is better


RECALL_TASK = TINY[0]
LONG = 4096  # bytes of a window for the measure ``long``
MEASURES = {
    "text": Measure("held-out text, bits per byte", "bits_per_byte", lower=True),
    "long": Measure("bits per byte, positions from 2,048 to 4,095", "late_bits_per_byte", lower=True),
    "recall": Measure("recall of 8 pairs, accuracy", "accuracy"),
    "recall-tasks": Measure("recall tasks, average", "recall average"),
    "commonsense-tasks": Measure("commonsense tasks, average", "commonsense average"),
    "longbench-tasks": Measure("LongBench, average", "longbench average"),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models side by side.

    Attributes:
        models: by label; the first is the one that others are held against.
        tiny: measures of the tiny scale, by number of seeds.
        paper: measures of the paper's scale, one seed; joined by ``+``, since a model is trained once for all. The two
            averages that the paper's ablations report unless given.
        sizes: of the paper's scale.
        recall_layers: layers of the tiny models that learn to recall.
    """

    models: Mapping[str, Model]
    tiny: Mapping[str, int]
    paper: str = "recall-tasks+commonsense-tasks"
    sizes: tuple[str, ...] = SIZES["paper"][:1]
    recall_layers: int = 1

    @property
    def experiment(self) -> Experiment:
        """As the registry wants it."""
        return Experiment(self.points, self.run, self.plot, self.table, self.findings)

    def points(self, scale: str) -> list[Point]:
        """Seed by seed, so that a sweep that is stopped early has compared all."""
        seeds = self.tiny if scale == "tiny" else {self.paper: 1}
        return [
            {"size": size, "measure": measure, "seed": seed, "model": model, **training_facts(size, measure)}
            for size in (SIZES["tiny"] if scale == "tiny" else self.sizes)
            for seed in range(max(seeds.values()))
            for measure, count in seeds.items()
            if seed < count
            for model in self.models
        ]

    def run(self, point: Point, models: Path) -> dict[str, Any]:
        """Trains a model, unless it has been trained before, and scores it."""
        from .text import held_out_scores, task_scores, trained

        model, measure, size = self.models[point["model"]], point["measure"], point["size"]
        if measure == "recall":
            return _recall(model, point["seed"], self.recall_layers, models)
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
        """Mean and every seed of each measure, how the first model stands, parameters (active, all), bytes of state."""
        groups = grouped(records)
        rows = []
        for (size, measure), models in groups.items():
            lower, first = MEASURES[measure].lower, models.get(next(iter(self.models)), [])
            for model, group in models.items():
                values, result = _values(measure, group), group[0]["result"]
                stands = "" if group is first else standing(_values(measure, first), values, lower)
                cells = [measure, size, model, f"{np.mean(values):.4g}", _each(values), stands]
                rows.append([*cells, f"{result['activated']:,}", f"{result['parameters']:,}", f"{result['state']:,}"])
        heading = ["measure", "size", "model", "mean", "each seed", f"{next(iter(self.models))} is"]
        return [[*heading, "active", "parameters", "state"], *rows]

    def findings(self, records: list[Record]) -> list[str]:
        """How the first model stands, a sentence for each measure."""
        return [
            verdict(
                f"{MEASURES[measure].title}, {size}",
                {name: _values(measure, models[name]) for name in self.models if name in models},
                MEASURES[measure].lower,
            )
            for (size, measure), models in grouped(records).items()
        ]

    def plot(self, records: list[Record], folder: Path) -> list[Path]:
        """A panel for each measure: a dot for every seed, a bar at their mean."""
        groups = grouped(records)
        names = list(self.models)
        figure = Figure(figsize=(4.2 * len(groups) + 1.2, 0.42 * len(names) + 1.6), layout="constrained")
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, ((size, measure), models) in zip(panels, groups.items(), strict=True):
            for model, group in models.items():
                values, place = _values(measure, group), names.index(model)
                colour = "C0" if place == 0 else "C7"
                axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, markersize=7)
                axes.plot([np.mean(values)], [place], "|", color=colour, markersize=20, markeredgewidth=2)
            better = "lower" if MEASURES[measure].lower else "higher"
            axes.set_xlabel(f"{MEASURES[measure].title} ({better} is better)")
            axes.set_title(size, fontsize=10)
            axes.grid(axis="x", alpha=0.25)
        panels[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        path = folder / "models.png"
        figure.savefig(path, dpi=150)
        return [path]


def training_facts(size: str, measure: str) -> dict[str, Any]:
    """What of the training a point tells: sizes that, once changed, make another point."""
    if measure == "recall":
        tokens, rates = RECALL_TASK.batch_size * RECALL_TASK.length, list(TINY_RATES)
        sizes = {"hidden_size": RECALL_TASK.hidden_size, "steps": RECALL_TASK.steps, "tokens_per_step": tokens}
        return {**sizes, "learning_rates": rates}
    config = recipe(size, "gated_deltanet", lambda mixture: mixture, 0)
    tokens = config.data.batch_size * config.data.sequence_length
    return {"hidden_size": config.model.hidden_size, "steps": config.steps, "tokens_per_step": tokens}


def _recall(model: Model, seed: int, layers: int, models: Path) -> dict[str, Any]:
    """The easier of `mqar`'s tiny tasks, with the learning rate that validates best."""
    config = mixture(dataclasses.asdict(RECALL_TASK))
    small = {field: getattr(config, field) for field in _SHAPE} | {"num_hidden_layers": layers}
    options = with_rule(get_preset("mom-tiny"), model.rule)
    config = model.change(dataclasses.replace(options, **small))
    points = [{**dataclasses.asdict(RECALL_TASK), "learning_rate": rate, "seed": seed} for rate in TINY_RATES]
    results = [{"learning_rate": point["learning_rate"], **recalled(config, point, models)} for point in points]
    return max(results, key=lambda result: result["validation"])


_SHAPE = ("vocab_size", "hidden_size", "num_heads", "head_dim", "expand_v", "intermediate_size", "num_memories", "topk",
          "use_short_conv", "num_slots",
          "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def grouped(records: list[Record]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    """Records by (size, measure), then by model; seeds in order."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda r: r["point"]["seed"]):
        point = record["point"]
        for measure in point["measure"].split("+"):
            groups.setdefault((point["size"], measure), {}).setdefault(point["model"], []).append(record)
    return groups


def _values(measure: str, group: list[Record]) -> list[float]:
    return [record["result"][MEASURES[measure].value] for record in group]


def _each(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
