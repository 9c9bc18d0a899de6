"""Text longer than that of the training: figure 4 of the paper.

    mom-jax experiment extrapolation --scale tiny        two CPU cores, three minutes after `commonsense`
    mom-jax experiment extrapolation --scale paper       32 GPUs, six days a model

Tiny: the models of `commonsense`, trained on windows of 512 bytes, are scored on windows of 512 to 8,192: 64 KB of
held-out source code at each length, the same for all models but not for all lengths, so models can be compared and
lengths cannot. Paper: models of 1.3B, trained on 2K tokens, from 2K to 32K; it has a figure without numbers, in which
MoM's perplexity is the lowest of the linear models.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mom_jax.drawing import legend_beside
from mom_jax.training.config import TrainConfig

from ..common.comparison import training_facts
from ..common.text import recipe
from ..registry import Contrast, Experiment, Point, Record
from .recall import MODELS

COMPARED = {"MoM": "C0", "Gated DeltaNet": "C7", "GLA": "C1", "HGRN2": "C2", "RetNet": "C3", "Transformer++": "C4"}
LENGTHS = {"tiny": (512, 1024, 2048, 4096, 8192), "paper": (2048, 4096, 8192, 16384, 32768)}
_SEEDS = {"tiny": 2, "paper": 1}
_SIZES = {"tiny": "tiny", "paper": "mom-1.3b"}


def points(scale: str) -> list[Point]:
    """Seed by seed; a point is a model at all lengths."""
    size = _SIZES[scale]
    return [
        {"size": size, "seed": seed, "model": model, "lengths": list(LENGTHS[scale]), **training_facts(size)}
        for seed in range(_SEEDS[scale])
        for model in COMPARED
    ]


def run(point: Point, models: Path) -> dict[str, Any]:
    """Bits per byte and perplexity at each length, in their order."""
    from ..common.text import held_out_scores, trained

    run_dir = trained(training(point), models)
    scores = [held_out_scores(run_dir, point["size"], length) for length in point["lengths"]]
    return {name: [score[name] for score in scores] for name in ("bits_per_byte", "perplexity")}


def training(point: Point) -> TrainConfig:
    """The model of a point."""
    model = MODELS[point["model"]]
    return recipe(point["size"], model.rule, model.change, point["seed"])


def table(records: list[Record]) -> list[list[str]]:
    """Mean bits per byte over the seeds, a row for each model; then every seed of the longest."""
    lengths = records[0]["point"]["lengths"]
    rows = []
    for model, group in _by_model(records).items():
        values = np.asarray([record["result"]["bits_per_byte"] for record in group])
        last = " ".join(f"{value:.4g}" for value in values[:, -1])
        rows.append([model, *(f"{value:.4f}" for value in values.mean(0)), last])
    return [["model", *(f"{length:,}" for length in lengths), f"each seed at {lengths[-1]:,}"], *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Bits per byte against the length of the window; thin lines are seeds."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for model, group in _by_model(records).items():
        values = np.asarray([record["result"]["bits_per_byte"] for record in group])
        lengths = group[0]["point"]["lengths"]
        axes.plot(lengths, values.mean(0), "o-", color=COMPARED[model], label=model)
        axes.plot(lengths, values.T, "-", color=COMPARED[model], linewidth=0.7, alpha=0.5)
    axes.set(xlabel="tokens of a window", ylabel="held-out bits per byte (lower is better)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend_beside(figure)
    return {"length": figure}


def _by_model(records: list[Record]) -> dict[str, list[Record]]:
    return {model: group for model in COMPARED if (group := [r for r in records if r["point"]["model"] == model])}


def contrasts(records: list[Record]) -> list[Contrast]:
    """MoM beside the others at the shortest and at the longest windows."""
    lengths, groups = records[0]["point"]["lengths"], _by_model(records)
    at = {
        place: {m: tuple(r["result"]["bits_per_byte"][place] for r in group) for m, group in groups.items()}
        for place in (0, -1)
    }
    return [
        Contrast(f"bits per byte in windows of {lengths[place]:,}", "MoM", other, values["MoM"], theirs, lower=True)
        for place, values in at.items()
        if "MoM" in values
        for other, theirs in values.items()
        if other != "MoM"
    ]


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, training=training)
