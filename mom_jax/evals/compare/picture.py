"""The growth of differences over depth, as a picture."""

import os
import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom_jax.evals.compare.budget import Budget
from mom_jax.evals.compare.comparison import Comparison


def draw_comparison(result: Comparison, path: Path) -> None:
    """Largest relative difference of each block's output and router, with the tolerance, as a PNG."""
    figure, axes = _axes("largest difference / largest value", "Ours and the reference, float32")
    series = {"block output": [layer.hidden for layer in result.layers]}
    series["router logits"] = [layer.router for layer in result.layers if layer.router]
    for name, parts in series.items():
        numbers = [int(part.quantity.rpartition("/")[2]) for part in parts]
        axes.plot(numbers, [part.max_rel for part in parts], marker="o", markersize=4, label=name)
    axes.axhline(result.layers[0].hidden.tolerance, color="0.4", linestyle="--", linewidth=1, label="tolerance")
    _save(figure, axes, path)


def draw_budget(budget: Budget, path: Path) -> None:
    """Relative error of bfloat16 by layer, of each block alone and of the whole model, as a PNG."""
    figure, axes = _axes("relative error", "bfloat16 against float32")
    for what, style in (("block", "--"), ("model", "-")):
        found = [line for line in budget.lines if re.fullmatch(rf"{what}: \d+", line.quantity)]
        numbers = [int(line.quantity.removeprefix(f"{what}: ")) for line in found]
        for side, color in (("reference", "C3"), ("ours", "C0")):
            values = [getattr(line, side) for line in found]
            axes.plot(numbers, values, style, marker="o", markersize=4, color=color, label=f"{what}, {side}")
    _save(figure, axes, path)


def _axes(label: str, title: str) -> tuple[Figure, Axes]:
    # Figures are made without pyplot: no global state, no window system.
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel="layer", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.set_yscale("log", nonpositive="mask")
    axes.legend(frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)
