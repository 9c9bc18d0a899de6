"""Multi-query associative recall at equal state and at equal parameters; the paper has no such result.

    mom-jax experiment mqar --scale tiny       two CPU cores, at most ten minutes
    mom-jax experiment mqar --scale paper      one GPU; spread it with --shard i/n

A mixture is compared with what else its resources could buy, under the same rule (gated delta rule):

- single: one memory of the size of each of the mixture's;
- equal-active: one memory as large as what a token of the mixture reads and writes (its k memories and the shared one);
- equal-total: one memory as large as all of the mixture's together;
- equal-parameters: a single memory, and an MLP that makes up for the projections a token activates in the mixture;
- attention: softmax attention, whose state grows with the length.

Tiny: 8 and 12 pairs in fused tokens (a key and its value in one, `mom_jax.data.recall`), vocabulary 64, one layer of
width 32 with one head of 4 key and 8 value channels, 4 memories of which 2 are chosen, learning rates 1e-2 and
3e-3, three seeds.
Paper: Zoology's grid (arXiv 2312.04927, figure 2): vocabulary 8192; (64, 4), (128, 8), (256, 16), (512, 64) tokens and
pairs, the same pairs in fused tokens; widths 64 to 512, two layers; learning rates logspace(-4, -2, 4), of which the
best by validation counts; as many rows as 64 epochs of 100,000; three seeds. Zoology reports that attention solves all
of these, and that a recurrent state solves those that it is large enough for.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from ..common.architectures import ARCHITECTURES, architecture, mixture
from ..common.recall import TINY, TINY_RATES, Pairs, recalled
from ..common.seeds import SEEDS, best
from ..common.standing import verdict
from ..registry import Experiment, Point, Record

PAPER = tuple(
    Pairs(task=task, length=length if task == "mqar" else length // 2, pairs=pairs, vocab=8192, hidden_size=width,
          num_layers=2, head_dim=width // 4, num_memories=4, steps=64 * 100_000 // batch_size, batch_size=batch_size,
          questions=pairs)
    for task in ("mqar", "fused")
    for length, pairs, batch_size in ((64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128))
    for width in (64, 128, 256, 512)
)  # fmt: skip
PAPER_RATES = tuple(float(rate) for rate in np.logspace(-4, -2, 4).round(7))


def points(scale: str) -> list[Point]:
    """Seed by seed, so that a sweep that is stopped early has compared all."""
    tasks, rates = (TINY, TINY_RATES) if scale == "tiny" else (PAPER, PAPER_RATES)
    return [
        {**dataclasses.asdict(task), "architecture": architecture, "learning_rate": rate, "seed": seed}
        for seed in range(SEEDS)
        for task in tasks
        for architecture in ARCHITECTURES
        for rate in rates
    ]


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains and scores one model."""
    return recalled(architecture(point["architecture"], mixture(point)), point, models)


def by_model(records: list[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """The `best` records by (task, length, pairs, width, architecture)."""
    return best(
        records, lambda point: tuple(point[name] for name in ("task", "length", "pairs", "hidden_size", "architecture"))
    )


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy: mean, and each seed."""
    heading = ["task", "pairs", "width", "model", "accuracy", "each seed", "state", "active parameters", "steps"]
    rows = []
    for (task, length, pairs, width, name), group in by_model(records).items():
        seeds = [r["result"]["accuracy"] for r in sorted(group, key=lambda r: r["point"]["seed"])]
        result = group[0]["result"]
        steps = "-".join(str(f([r["result"]["steps"] for r in group])) for f in (min, max))
        cells = [f"{task} {length}", pairs, width, ARCHITECTURES[name][0], f"{np.mean(seeds):.3f}"]
        cells += [" ".join(f"{seed:.3f}" for seed in seeds), f"{result['state']:,}", f"{result['activated']:,}", steps]
        rows.append([str(cell) for cell in cells])
    return [heading, *rows]


def plot(records: list[Record], folder: Path) -> list[Path]:
    """Accuracy against the size of the state, a panel for each task; every seed is a dot, a line joins the widths."""
    groups = by_model(records)
    tasks = list(dict.fromkeys(key[:3] for key in groups))
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        _panel(axes, task, {key: group for key, group in groups.items() if key[:3] == task})
    figure.supxlabel("state of one sequence (bytes)")
    figure.supylabel("accuracy")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    path = folder / "accuracy.png"
    figure.savefig(path, dpi=150)
    return [path]


def _panel(axes: Axes, task: tuple[Any, ...], groups: dict[tuple[Any, ...], list[Record]]) -> None:
    for name, (label, colour) in ARCHITECTURES.items():
        of_model = [groups[key] for key in sorted(groups, key=lambda key: key[3]) if key[4] == name]
        if not of_model:
            continue
        states = [group[0]["result"]["state"] for group in of_model]
        means = [np.mean([r["result"]["accuracy"] for r in group]) for group in of_model]
        axes.plot(states, means, "o-", color=colour, label=label, markersize=7)
        for state, group in zip(states, of_model, strict=True):
            accuracies = [r["result"]["accuracy"] for r in group]
            axes.plot([state] * len(group), accuracies, ".", color=colour, markersize=5, alpha=0.6)
    axes.set(title=f"{task[0]}, {task[2]} pairs in {task[1]} tokens", ylim=(-0.03, 1.03))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)


def findings(records: list[Record]) -> list[str]:
    """The mixture's standing in each task."""
    accuracies: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for (*task, name), group in by_model(records).items():
        accuracies.setdefault(tuple(task), {})[ARCHITECTURES[name][0]] = [r["result"]["accuracy"] for r in group]
    return [
        verdict(f"{task} {length}, {pairs} pairs, width {width}", models)
        for (task, length, pairs, width), models in accuracies.items()
    ]


EXPERIMENT = Experiment(points, run, plot, table, findings)
