"""Text with context: how much what came before helps, by models of equal state and of equal parameters.

    mom-jax experiment context --scale small       two CPU cores, two days; one GPU, two hours

Not in the paper. A language model that has learnt nothing but which bytes follow which few predicts the two-thousandth
byte of a window no better than the twentieth, and then says nothing about memories. The in-context gain is what it does
better: bits per byte at positions 16 to 31 less those at 1,024 to 2,047. Each model reads 10.5 MB of the standard
library's source once; its learning rate is chosen as `common/tuned.py` says, by the loss on the last tenth of that
text, which it has not seen before; then three fresh seeds are scored on held-out files, all of them the same. Beside
them stand n-gram models of the same text (`mom_jax.evals.ngram`).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.drawing import legend_below
from mom_jax.training.config import TrainConfig

from ..common.architectures import ARCHITECTURES, architecture
from ..common.comparison import training_facts
from ..common.seeds import rate_cell
from ..common.statistics import mean_interval
from ..common.text import SMALL, recipe
from ..common.tuned import GRID, SEEDS, TUNING_SEED, tuned
from ..registry import Contrast, Experiment, Point, Record

WINDOW = 2048
EARLY, LATE = 16, 1024  # where the two buckets of positions begin


def points(scale: str) -> list[Point]:
    """Every model, with all of its rates and seeds."""
    facts = {"size": SMALL, "rates": list(GRID), "seeds": list(SEEDS[:3]), **training_facts(SMALL)}
    return [{**facts, "architecture": name} for name in ARCHITECTURES]


def config_of(point: Point, rate: float, seed: int) -> TrainConfig:
    """A run of a point."""
    config = recipe(point["size"], "gated_deltanet", lambda mixture: architecture(point["architecture"], mixture), seed)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))


def run(point: Point, models: Path) -> dict[str, Any]:
    """The best rate; of each seed ``bits_per_byte``, ``gain`` and ``by_position``; n-gram models of the same text."""
    from mom_jax.training.log import read_metrics

    from ..common.text import held_out_scores, ngram_scores, trained

    def train(asked: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
        results = []
        for rate, seed in asked:
            run_dir = trained(config_of(point, rate, seed), models)
            logged = [record for record in read_metrics(run_dir) if "lm_loss" in record]
            late = [record["lm_loss"] for record in logged if record["step"] > 0.9 * point["steps"]]
            scores = {} if seed == TUNING_SEED else held_out_scores(run_dir, point["size"], WINDOW)
            results.append({"validation_loss": float(np.mean(late)), **scores, **(gained(scores) if scores else {})})
        return results

    result = tuned(train, point["rates"], point["seeds"])
    first = config_of(point, result["learning_rate"], point["seeds"][0])
    return {**result, "ngrams": ngram_scores(trained(first, models))}


def gained(scores: dict[str, Any]) -> dict[str, float]:
    """``gain``: bits per byte early in a window less those late, from losses by position in nats."""
    loss = {bucket["start"]: bucket["loss"] for bucket in scores["by_position"]}
    return {"gain": (loss[EARLY] - loss[LATE]) / math.log(2)}


def values(record: Record, name: str) -> tuple[float, ...]:
    """What was measured with every seed."""
    return tuple(run[name] for run in record["result"]["runs"])


def table(records: list[Record]) -> list[list[str]]:
    """Bits and in-context gain of every model, and what it costs."""
    heading = ["model", "bits per byte [95 %]", "in-context gain [95 %]", "rate", "active", "parameters", "state"]
    rows = []
    for record in records:
        first = record["result"]["runs"][0]
        measured = [str(mean_interval(values(record, name))) for name in ("bits_per_byte", "gain")]
        costs = [f"{first[name]:,}" for name in ("activated", "parameters", "state")]
        rows.append([ARCHITECTURES[record["point"]["architecture"]][0], *measured, rate_cell(record), *costs])
    ngrams = [[name, f"{bits:.4f}", *["–"] * 5] for name, bits in records[0]["result"]["ngrams"].items()]
    return [heading, *rows, *ngrams]


def plot(records: list[Record], folder: Path) -> list[Path]:
    """Bits per byte by position in the window, means of the seeds with their intervals."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    for record, marker in zip(records, "os^DvP*X", strict=False):
        label, colour = ARCHITECTURES[record["point"]["architecture"]]
        buckets = [run["by_position"] for run in record["result"]["runs"]]
        means = [mean_interval([of[i]["loss"] / math.log(2) for of in buckets]) for i in range(len(buckets[0]))]
        halves = [mean.high - mean.value if np.isfinite(mean.high) else 0 for mean in means]
        places = [max(bucket["start"], 8) for bucket in buckets[0]]
        axes.errorbar(places, [m.value for m in means], halves, fmt=f"{marker}-", color=colour, label=label, capsize=3)
    trigram = records[0]["result"]["ngrams"]["trigram"]
    axes.axhline(trigram, color="0.3", linestyle=":", label="trigrams of bytes")
    axes.set(title="held-out source code", xlabel="position in the window (byte)", ylabel="bits per byte")
    axes.set_xscale("log", base=2)
    legend_below(figure, 3)
    path = folder / "position.png"
    figure.savefig(path, dpi=150)
    return [path]


def contrasts(records: list[Record]) -> list[Contrast]:
    """Each model's in-context gain beside none; the mixture's bits beside every other model's."""
    models = {ARCHITECTURES[record["point"]["architecture"]][0]: record for record in records}
    made = [
        Contrast("in-context gain, bits per byte", name, "none", gain, (0.0,) * len(gain))
        for name, record in models.items()
        for gain in [values(record, "gain")]
    ]
    ours, *others = models
    return made + [
        Contrast("held-out text, bits per byte", ours, name, values(models[ours], "bits_per_byte"),
                 values(models[name], "bits_per_byte"), lower=True)
        for name in others
    ]  # fmt: skip


def training(point: Point) -> TrainConfig:
    """One of a point's runs."""
    return config_of(point, point["rates"][0], point["seeds"][0])


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, scales=("small",), training=training)
