"""Multi-query associative recall at equal state and at equal parameters; the paper has no such result.

    mom-jax experiment mqar --scale tiny       two CPU cores, four minutes
    mom-jax experiment mqar --scale small      two CPU cores, an hour and a half
    mom-jax experiment mqar --scale paper      one GPU; spread it with --shard i/n

A mixture is compared with what else its resources could buy, under the same rule (gated delta rule):

- single: one memory of the size of each of the mixture's;
- equal-active: one memory as large as what a token of the mixture reads and writes (its k memories and the shared one);
- equal-total: one memory as large as all of the mixture's together, in three forms: wider values as the paper's,
  wider keys, more heads;
- equal-parameters: a single memory, and an MLP that makes up for the projections a token activates in the mixture;
- attention: softmax attention, whose state grows with the length.

Tiny: 8 pairs in fused tokens (a key and its value in one, `mom_jax.data.recall`), vocabulary 64, one layer of
width 32 with one head of 4 key and 8 value channels, 4 memories of which 2 are chosen, one learning rate, two seeds.
Small: 8 pairs in 32 tokens, vocabulary 512, two layers of width 64 with one head of 8 key and 16 value channels,
6,000 steps of 32 rows. Recall is learnt in a leap that comes early from few pairs and late from many: a step's rows
have 1, 2, 4 or 8 pairs, and embeddings begin as large as the inverse root of the width. With a vocabulary of 8,192 the
leap was under way after 4,000 such steps of a single memory (0.48), at four times the cost of a step.
Paper: Zoology's grid (arXiv 2312.04927, figure 2): vocabulary 8192; (64, 4), (128, 8), (256, 16), (512, 64) tokens and
pairs, the same pairs in fused tokens; widths 64 to 512, two layers; learning rates logspace(-4, -2, 4), chosen as
`common/tuned.py` says; as many rows as 64 epochs of 100,000; three seeds. Zoology reports that attention solves all
of these, and that a recurrent state solves those that it is large enough for.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mom_jax.drawing import legend_below

from ..common.architectures import ARCHITECTURES, architecture, mixture
from ..common.recall import TINY, Pairs, recalled
from ..common.seeds import CELLS, beside_mixture, cells, draw, points_of, rate_cell
from ..common.tuned import GRID, SEEDS
from ..registry import Contrast, Experiment, Point, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons(Pairs):
    """Pairs that are learnt from rows of fewer, too: of the ``fewest``, and of twice as many until all."""

    fewest: int
    initializer_range: float


PAPER_RATES = tuple(float(rate) for rate in np.logspace(-4, -2, 4).round(7))
PAPER = tuple(
    Pairs(task=task, length=length if task == "mqar" else length // 2, pairs=pairs, vocab=8192, hidden_size=width,
          num_layers=2, head_dim=width // 4, num_memories=4, steps=64 * 100_000 // batch_size, batch_size=batch_size,
          questions=pairs, rates=PAPER_RATES, seeds=(0, 1, 2), together=1)
    for task in ("mqar", "fused")
    for length, pairs, batch_size in ((64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128))
    for width in (64, 128, 256, 512)
)  # fmt: skip
SMALL = (
    Lessons(task="mqar", length=32, pairs=8, vocab=512, hidden_size=64, num_layers=2, head_dim=8, num_memories=4,
            steps=6000, batch_size=32, questions=8, rates=GRID, seeds=SEEDS, together=4, fewest=1,
            initializer_range=0.125),
)  # fmt: skip
TASKS = {"tiny": (TINY,), "small": SMALL, "paper": PAPER}
MODELS = {name: look for name, look in ARCHITECTURES.items() if name != "equal-all-parameters"}


def points(scale: str) -> list[Point]:
    """Task by task, each with every model."""
    return [point for task in TASKS[scale] for point in points_of(task, tuple(MODELS))]


def run(point: Point, models: Path) -> dict[str, Any]:
    """The best learning rate of a model, and every seed with it."""
    config = mixture(point)
    if "initializer_range" in point:
        config = dataclasses.replace(config, initializer_range=point["initializer_range"])
    return recalled(architecture(point["architecture"], config), point, models)


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy: mean with its interval, and each seed."""
    heading = ["task", "pairs", "width", "model", *CELLS, "rate", "state", "active parameters"]
    rows = []
    for record in records:
        point, first = record["point"], record["result"]["runs"][0]
        task = [f"{point['task']} {point['length']}", point["pairs"], point["hidden_size"]]
        name, costs = ARCHITECTURES[point["architecture"]][0], [f"{first[cost]:,}" for cost in ("state", "activated")]
        rows.append([str(cell) for cell in [*task, name, *cells(record), rate_cell(record), *costs]])
    return [heading, *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Accuracy against the size of the state, a panel for each task; a line joins the widths."""
    tasks = by_task(records)
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(8.5, 3.6 * columns + 0.4), 3.2 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, ((task, length, pairs), group) in zip(grid.flat, tasks.items(), strict=False):
        _panel(axes, group)
        axes.set_title(f"{task}, {pairs} pairs in {length} tokens")
    for axes in grid[-1]:
        axes.set_xlabel("state of one sequence (bytes)")
    figure.supylabel("accuracy")
    legend_below(figure, 3)
    return {"accuracy": figure}


def _panel(axes: Axes, records: list[Record]) -> None:
    for (name, (label, colour)), marker in zip(MODELS.items(), "os^DvP*X", strict=True):
        widths = [record for record in records if record["point"]["architecture"] == name]
        widths.sort(key=lambda record: record["point"]["hidden_size"])
        if widths:
            states = [float(record["result"]["runs"][0]["state"]) for record in widths]
            draw(axes, states, widths, color=colour, label=label, fmt=f"{marker}-", markersize=6)
    axes.set(ylim=(0, 1.03))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def by_task(records: list[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records by (task, length, pairs)."""
    tasks: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        tasks.setdefault(tuple(record["point"][name] for name in ("task", "length", "pairs")), []).append(record)
    return tasks


def contrasts(records: list[Record]) -> list[Contrast]:
    """The mixture beside every other model of each task and width."""
    return [
        contrast
        for (task, length, pairs), group in by_task(records).items()
        for width in sorted({record["point"]["hidden_size"] for record in group})
        for contrast in beside_mixture(
            f"{task} {length}, {pairs} pairs, width {width}, accuracy",
            [record for record in group if record["point"]["hidden_size"] == width],
        )
    ]


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, scales=("tiny", "small", "paper"))
