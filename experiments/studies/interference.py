"""What later writes do to earlier ones, of their own kind and of another; the paper has no such result.

    mom-jax experiment interference --scale tiny       two CPU cores, three minutes
    mom-jax experiment interference --scale small      two CPU cores, half an hour; one GPU, minutes
    mom-jax experiment interference --scale paper      one GPU; spread it with --shard i/n

The paper's reason for several memories is that a write to one leaves the others as they are. So what is written later
should hurt an earlier pair less where it is of another kind and the router has learnt to part the kinds. A model
learns recall from fused tokens that also say of which of four kinds their key is (`mom_jax.data.recall.interference`),
in rows of one kind and then, at evens, of another, where every pair is asked for. Then it is tested on a few pairs, m
distractors (pairs that are not asked for) of the same kind or of another, and the first pairs. How far the router parts
the kinds is the mutual information of a write's kind and its memory, in bits: 0 where memories take no notice, and at
most 1 where two of four memories are chosen (2 of top-1). The models are a mixture, one memory of its size, of equal
active state, of equal total state in three forms, and attention, which overwrites nothing.

Tiny: 4 pairs and up to 4 distractors, 50 steps. Small: 4 pairs and up to 12 distractors, vocabulary 256, one layer of
width 64 with one head of 8 key and 16 value channels, 4 memories of which 2 are chosen, 2,500 steps of 16 rows. Paper:
32 pairs and up to 480 distractors, vocabulary 8192, two layers of width 128 with one head of 32 key and 64 value
channels.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.data.recall import interference
from mom_jax.drawing import legend_below

from ..common.architectures import ARCHITECTURES, COMPARED, architecture, mixture
from ..common.rows import Rows
from ..common.seeds import CELLS, Task, cells, draw, learned, points_of, rate_cell, scores, trained
from ..common.statistics import mean_interval
from ..common.tuned import EIGHT, GRID
from ..registry import Contrast, Experiment, Point, Record
from .mqar import PAPER_RATES

KINDS = 4
SECOND = {"same": "the same kind", "other": "another kind"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Task):
    """What is written and read."""

    task: str = "interference"
    pairs: int
    distractors: tuple[int, ...]  # two tests each; training has the pairs and as many more as the last


TASKS = {
    "tiny": Probe(pairs=4, distractors=(0, 4), vocab=128, hidden_size=32, num_layers=1, head_dim=4, num_memories=4,
                  steps=50, batch_size=32, questions=8, rates=(1e-2,), seeds=(0, 1)),
    "small": Probe(pairs=4, distractors=(0, 4, 12), vocab=256, hidden_size=64, num_layers=1, head_dim=8, num_memories=4,
                   steps=2500, batch_size=16, questions=16, rates=GRID, seeds=EIGHT, test_rows=1024, together=4),
    "paper": Probe(pairs=32, distractors=(0, 32, 96, 224, 480), vocab=8192, hidden_size=128, num_layers=2, head_dim=32,
                   num_memories=4, steps=50_000, batch_size=128, questions=512, rates=PAPER_RATES, seeds=(0, 1, 2),
                   together=1),
}  # fmt: skip


def points(scale: str) -> list[Point]:
    """Every model."""
    made = points_of(TASKS[scale], COMPARED)
    return [{**point, "distractors": list(point["distractors"])} for point in made]


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains a model on recall, and tests it with each number of distractors of each kind."""
    written = point["pairs"] + max(point["distractors"])
    sizes = {"length": 2 * written, "pairs": point["pairs"], "vocab": point["vocab"], "kinds": KINDS}
    make = functools.partial(interference, **sizes)
    tests = {
        f"{second} {count}": functools.partial(make, distractors=count, second=second)
        for count in point["distractors"]
        for second in SECOND
    }
    asked = functools.partial(make, distractors=max(point["distractors"]), asked="all")
    config = dataclasses.replace(architecture(point["architecture"], mixture(point)), impl="xla")
    facts = {"task": point["task"], "distractors": point["distractors"], **sizes}
    return learned(point, config, Rows(facts, asked, tests=tests, kinds=KINDS), models, chance=1 / written)


def information(record: Record) -> list[float]:
    """Bits that a write's kind and its memory tell of each other, the most of any layer, for each seed; [] of none."""
    return [max(map(_bits, np.asarray(run["kinds"]))) for run in record["result"]["runs"] if "kinds" in run]


def _bits(joint: np.ndarray) -> float:
    """Mutual information of a joint distribution."""
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    at = joint > 0
    return float((joint[at] * np.log2(joint[at] / apart[at])).sum())


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy with each number and kind of distractors, and what its router tells of kinds."""
    heading = ["model", "distractors", *CELLS, "all pairs, as in training", "kind and memory (bits)", "rate"]
    rows = []
    for record in records:
        for count in record["point"]["distractors"]:
            for second, words in SECOND.items():
                bits = information(record)
                ends = [f"{np.mean(scores(record)):.3f}", f"{np.mean(bits):.2f}" if bits else "–", rate_cell(record)]
                name = ARCHITECTURES[record["point"]["architecture"]][0]
                rows.append([name, f"{count}, {words}", *cells(record, f"{second} {count}"), *ends])
    return [heading, *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Accuracy of the first pairs against distractors, a panel for each kind of these."""
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(SECOND), sharey=True)
    for axes, (second, words) in zip(panels, SECOND.items(), strict=True):
        for record, marker in zip(records, "os^DvP*X", strict=False):
            counts = record["point"]["distractors"]
            label, colour = ARCHITECTURES[record["point"]["architecture"]]
            tests = [f"{second} {count}" for count in counts]
            draw(axes, list(map(float, counts)), [record] * len(counts), tests, color=colour, label=label,
                 fmt=f"{marker}-", markersize=6)  # fmt: skip
        axes.set(title=f"distractors of {words}", xlabel="distractors after the first pairs", ylim=(0, 1.03))
    panels[0].set_ylabel("accuracy of the first pairs")
    legend_below(figure, 3)
    return {"first-pairs": figure}


def contrasts(records: list[Record]) -> list[Contrast]:
    """What another kind spares each model with the most distractors, and how much more it spares the mixture."""
    spares = {record["point"]["architecture"]: spared(record) for record in records}
    ours, what = spares.get("mom", ()), "accuracy of the first pairs, distractors of another kind less of the same"
    made = [
        Contrast(what, ARCHITECTURES[name][0], "none", theirs, (0.0,) * len(theirs)) for name, theirs in spares.items()
    ]
    made += [
        Contrast(what, ARCHITECTURES["mom"][0], ARCHITECTURES[name][0], ours, theirs)
        for name, theirs in spares.items()
        if name != "mom"
    ]
    return [contrast for contrast in made if contrast.ours and contrast.theirs]


def spared(record: Record) -> tuple[float, ...]:
    """Accuracy with the most distractors, of another kind less of the same, of each seed that learnt the task."""
    count = record["point"]["distractors"][-1]
    pairs = zip(trained(record, f"other {count}"), trained(record, f"same {count}"), strict=True)
    return tuple(other - same for other, same in pairs)


def findings(records: list[Record]) -> list[str]:
    """How far the router parts the kinds."""
    shown = [(record, bits) for record in records if len(bits := information(record)) > 1]
    return [
        f"{ARCHITECTURES[record['point']['architecture']][0]}: the kind of a write and its memory tell "
        f"{mean_interval(bits)} bits of each other (mean with its 95 % interval over {len(bits)} seeds; 0 is none)."
        for record, bits in shown
    ]


EXPERIMENT = Experiment(points, run, plot, table, findings, contrasts, scales=("tiny", "small", "paper"))
