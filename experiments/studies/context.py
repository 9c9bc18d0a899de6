"""Text with context: how much what came before helps, by models of equal state and of equal parameters.

    mom-jax experiment context --scale small       two CPU cores, three hours; one GPU, minutes

Not in the paper. A language model that has learnt nothing but which bytes follow which few predicts the two-thousandth
byte of a window no better than the twentieth, and then says nothing about memories. The in-context gain is what it does
better: bits per byte at positions 16 to 31 less those at 1,024 to 2,047. Each model reads 10.5 MB of the standard
library's source once; its learning rate is chosen as `common/tuned.py` says, in runs of a quarter of that length, by
the loss on their last tenth, which is text not seen before; then three fresh seeds are scored on held-out files, all of
them the same. Beside them stand n-gram models of the same text (`mom_jax.evals.ngram`). At last the same bytes are
scored after 1K, 7K and 31K bytes of history (`common/history.py`), the last two longer than any window of training;
attention, whose work grows with the square, is not asked the last.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

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
HISTORY = (2048, 8192, 32_768)  # bytes that are read, those that are scored included
SCORED = 1024
MODELS = ("mom", "single", "equal-total-keys", "equal-parameters", "equal-all-parameters", "attention")
SEARCH = 4  # a run that searches the rate is so many times shorter


def points(scale: str) -> list[Point]:
    """Every model, with all of its rates and seeds."""
    facts = {"size": SMALL, "search": SEARCH, "rates": list(GRID), "seeds": list(SEEDS[:3]), **training_facts(SMALL)}
    return [
        {**facts, "history": list(HISTORY[:2] if name == "attention" else HISTORY), "architecture": name}
        for name in MODELS
    ]


def config_of(point: Point, rate: float, seed: int) -> TrainConfig:
    """A run of a point."""
    config = recipe(point["size"], "gated_deltanet", lambda mixture: architecture(point["architecture"], mixture), seed)
    steps = config.steps // point["search"] if seed == TUNING_SEED else config.steps
    return dataclasses.replace(config, steps=steps, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))


def run(point: Point, models: Path) -> dict[str, Any]:
    """The best rate; of each seed ``bits_per_byte``, ``gain``, ``by_position``, ``history`` (bits); n-gram models."""
    from mom_jax.training.log import read_metrics

    from ..common.history import history_bits
    from ..common.text import held_out_scores, ngram_scores, trained

    def train(asked: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
        results = []
        for rate, seed in asked:
            config = config_of(point, rate, seed)
            run_dir = trained(config, models)
            logged = [record for record in read_metrics(run_dir) if "lm_loss" in record]
            late = [record["lm_loss"] for record in logged if record["step"] > 0.9 * config.steps]
            results.append({"validation_loss": float(np.mean(late))})
            if seed != TUNING_SEED:
                scores = held_out_scores(run_dir, point["size"], WINDOW)
                results[-1] |= {**scores, **gained(scores), "history": history_bits(run_dir, point["history"], SCORED)}
        return results

    result = tuned(train, point["rates"], point["seeds"])
    first = config_of(point, result["learning_rate"], point["seeds"][0])
    return {**result, "ngrams": ngram_scores(trained(first, models))}


def gained(scores: dict[str, Any]) -> dict[str, float]:
    """``gain``: bits per byte early in a window less those late, from losses by position in nats."""
    loss = {bucket["start"]: bucket["loss"] for bucket in scores["by_position"]}
    return {"gain": (loss[EARLY] - loss[LATE]) / math.log(2)}


def values(record: Record, name: str) -> tuple[Any, ...]:
    """What was measured with every seed."""
    return tuple(run[name] for run in record["result"]["runs"])


def table(records: list[Record]) -> list[list[str]]:
    """Bits, in-context gain and bits after each history of every model, and what it costs."""
    after = [f"after {length - SCORED:,} bytes" for length in HISTORY]
    heading = ["model", "bits per byte [95 %]", "in-context gain [95 %]", *after]
    heading += ["rate", "active", "parameters", "state"]
    rows = []
    for record in records:
        first = record["result"]["runs"][0]
        measured = [str(mean_interval(values(record, name))) for name in ("bits_per_byte", "gain")]
        bits = [f"{mean:.4f}" for mean in np.mean(values(record, "history"), axis=0)]
        costs = [f"{first[name]:,}" for name in ("activated", "parameters", "state")]
        blank = ["–"] * (len(HISTORY) - len(bits))
        rows.append([_label(record), *measured, *bits, *blank, rate_cell(record), *costs])
    ngrams = [[name, f"{bits:.4f}", *["–"] * 8] for name, bits in records[0]["result"]["ngrams"].items()]
    return [heading, *rows, *ngrams]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Bits per byte by position in the window, and of the same bytes by history: means of the seeds with intervals."""
    figure = Figure(figsize=(10.4, 4.8), layout="constrained")
    windows, histories = figure.subplots(1, 2)
    for number, (record, marker) in enumerate(zip(records, "os^DvP*X", strict=False)):
        aside = 2 ** (0.12 * (number - (len(records) - 1) / 2))  # intervals would hide each other
        look = {"fmt": f"{marker}-", "color": ARCHITECTURES[record["point"]["architecture"]][1], "capsize": 3}
        buckets = [run["by_position"] for run in record["result"]["runs"]]
        places = [aside * max(bucket["start"], 8) for bucket in buckets[0]]
        bits = [[bucket["loss"] / math.log(2) for bucket in of_seed] for of_seed in buckets]
        _line(windows, places, bits, label=_label(record), **look)
        lengths = [aside * (length - SCORED) for length in record["point"]["history"]]
        _line(histories, lengths, values(record, "history"), **look)
    trigram = records[0]["result"]["ngrams"]["trigram"]
    windows.axhline(trigram, color="0.3", linestyle=":", label="trigrams of bytes")
    windows.set(title="held-out source code", xlabel="position in the window (byte)", ylabel="bits per byte")
    histories.set(title=f"the same {SCORED:,} bytes of long files", xlabel="bytes read before them")
    for axes in (windows, histories):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend_below(figure, 4)
    return {"position": figure}


def _line(axes: Axes, places: Sequence[float], of_seeds: Sequence[Sequence[float]], **look: Any) -> None:
    """Means over the seeds with their intervals, of results [seed][place]."""
    means = [mean_interval(at) for at in zip(*of_seeds, strict=True)]
    halves = [mean.high - mean.value if np.isfinite(mean.high) else 0 for mean in means]
    axes.errorbar(places, [mean.value for mean in means], halves, **look)


def contrasts(records: list[Record]) -> list[Contrast]:
    """What context gains each model, and a longer history, beside nothing; the mixture's bits beside the others'."""
    gains = {"in-context gain, bits per byte": gain_of, "bits per byte that the longest history spares": spared}
    made = [
        Contrast(what, _label(record), "none", measure(record), (0.0,) * len(measure(record)))
        for what, measure in gains.items()
        for record in records
    ]
    ours, *others = records
    return made + [
        Contrast("held-out text, bits per byte", _label(ours), _label(other), values(ours, "bits_per_byte"),
                 values(other, "bits_per_byte"), lower=True)
        for other in others
    ]  # fmt: skip


def gain_of(record: Record) -> tuple[float, ...]:
    """In-context gain of every seed."""
    return values(record, "gain")


def spared(record: Record) -> tuple[float, ...]:
    """Bits after the shortest history less those after the longest, of every seed."""
    return tuple(bits[0] - bits[-1] for bits in values(record, "history"))


def _label(record: Record) -> str:
    return ARCHITECTURES[record["point"]["architecture"]][0]


def training(point: Point) -> TrainConfig:
    """One of a point's runs."""
    return config_of(point, point["rates"][0], point["seeds"][0])


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, scales=("small",), training=training)
