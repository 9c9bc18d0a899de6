"""What later writes do to an early one, by models of equal state; the paper has no such result.

    mom-jax experiment interference --scale tiny       two CPU cores, ten minutes
    mom-jax experiment interference --scale paper      one GPU; spread it with --shard i/n

A model learns recall from fused tokens (`mom_jax.data.recall.fused_mqar`) in rows where every pair is asked for, so
that it has to keep all of them. Then it is tested on other rows: a few pairs, m distractors (pairs that are not asked
for), and the key of the very first pair. A model that is trained on that question would learn to write nothing but
the first token; one that is trained to keep everything cannot know which write matters. Accuracy against m says how
long a write lasts: in a mixture many later writes go elsewhere, one memory of equal state has more room for all. The
models are those of recall (`studies/mqar.py`): the mixture, one memory of its size, of equal active and of equal total
state, and attention, which overwrites nothing.

Tiny: 4 pairs and up to 8 distractors, vocabulary 64, one layer of width 32 with one head of 4 key and 8 value
channels, 4 memories of which 2 are chosen, two learning rates, three seeds.
Paper: 32 pairs and up to 480 distractors, vocabulary 8192, two layers of width 128 with one head of 32 key and 64 value
channels, the learning rates and rows of `studies/mqar.py`, three seeds.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.data.recall import BLANK, RecallBatch, fused_mqar, interference
from mom_jax.labels import IGNORE

from ..common.architectures import ARCHITECTURES, mixture
from ..common.recall import TINY_RATES
from ..common.seeds import Task, by_architecture, cells, draw, points_of, train
from ..common.standing import verdict
from ..registry import Experiment, Point, Record
from .mqar import PAPER_RATES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Task):
    """What is written and read."""

    task: str = "interference"
    pairs: int
    distractors: list[int]  # one test each; training has the pairs and as many more as the last


TINY = Probe(pairs=4, distractors=[0, 2, 4, 8], vocab=64, hidden_size=32, num_layers=1, head_dim=4, num_memories=4,
             steps=800, batch_size=32, questions=12)  # fmt: skip
PAPER = Probe(pairs=32, distractors=[0, 32, 96, 224, 480], vocab=8192, hidden_size=128, num_layers=2, head_dim=32,
              num_memories=4, steps=50_000, batch_size=128, questions=512)  # fmt: skip


def points(scale: str) -> list[Point]:
    """Seed by seed, so that a sweep that is stopped early has compared all."""
    return points_of(TINY, TINY_RATES) if scale == "tiny" else points_of(PAPER, PAPER_RATES)


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains one model on recall, and tests it with each number of distractors."""
    written = point["pairs"] + max(point["distractors"])
    length, vocab = 2 * written, point["vocab"]
    tests = {
        str(count): functools.partial(padded, length=length, pairs=point["pairs"], distractors=count, vocab=vocab)
        for count in point["distractors"]
    }
    make = functools.partial(fused_mqar, length=length, pairs=written, vocab=vocab)
    return train(point, mixture(point), make, tests)


def padded(rng: np.random.Generator, batch: int, length: int, **sizes: int) -> RecallBatch:
    """`interference` with blanks behind the query, where no answer depends on them: one compiled program for all."""
    tokens, labels = interference(rng, batch, **sizes)
    rest = ((0, 0), (0, length - labels.shape[1]))
    return RecallBatch(
        np.pad(tokens, (*rest, (0, 0)), constant_values=BLANK), np.pad(labels, rest, constant_values=IGNORE)
    )


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy with each number of distractors: mean, and each seed."""
    heading = ["distractors", "model", "first pair", "each seed", "all pairs, as in training", "state"]
    groups = by_architecture(records)
    rows = [
        [str(count), ARCHITECTURES[name][0], *cells(_first(group, count)), _all(group), _state(group)]
        for count in _counts(records)
        for name, group in groups.items()
    ]
    return [heading, *rows]


def plot(records: list[Record], folder: Path) -> list[Path]:
    """Accuracy of the first pair against distractors, a line for each model; every seed is a dot."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    counts = _counts(records)
    for name, group in by_architecture(records).items():
        draw(axes, name, [float(count) for count in counts], [_first(group, count) for count in counts])
    axes.set(xlabel="distractors after the first pairs", ylabel="accuracy of the first pair")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    path = folder / "first-pair.png"
    figure.savefig(path, dpi=150)
    return [path]


def _counts(records: list[Record]) -> list[int]:
    return records[0]["point"]["distractors"]


def _first(group: list[Record], count: int) -> list[float]:
    return [record["result"]["tests"][str(count)] for record in group]


def _all(group: list[Record]) -> str:
    return f"{np.mean([record['result']['accuracy'] for record in group]):.3f}"


def _state(group: list[Record]) -> str:
    return f"{group[0]['result']['state']:,}"


def findings(records: list[Record]) -> list[str]:
    """The mixture's standing with the fewest and the most distractors."""
    groups, counts = by_architecture(records), _counts(records)
    return [
        verdict(
            f"the first pair after {count} distractors",
            {ARCHITECTURES[name][0]: _first(group, count) for name, group in groups.items()},
        )
        for count in (counts[0], counts[-1])
    ]


EXPERIMENT = Experiment(points, run, plot, table, findings)
