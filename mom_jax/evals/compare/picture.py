"""The growth of differences over depth, as a picture."""

import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom_jax.drawing import NEUTRAL, legend_beside, one_panel
from mom_jax.evals.compare.budget import Budget
from mom_jax.evals.compare.comparison import Comparison


def comparison_figure(result: Comparison) -> Figure:
    """Largest relative difference of each block's output and router, with the tolerance."""
    figure, axes = one_panel("Ours and the reference, float32", "layer", "largest difference / largest value")
    series = {"block output": [layer.hidden for layer in result.layers]}
    series["router logits"] = [layer.router for layer in result.layers if layer.router]
    for name, parts in series.items():
        numbers = [int(part.quantity.rpartition("/")[2]) for part in parts]
        axes.plot(numbers, [part.max_rel for part in parts], marker="o", markersize=4, label=name)
    axes.axhline(result.layers[0].hidden.tolerance, color=NEUTRAL, linestyle="--", linewidth=1, label="tolerance")
    return _finished(figure, axes)


def budget_figure(budget: Budget) -> Figure:
    """Relative error of bfloat16 by layer, of each block alone and of the whole model."""
    figure, axes = one_panel("bfloat16 against float32", "layer", "relative error")
    for what, style in (("block", "--"), ("model", "-")):
        lines = [line for line in budget.lines if re.fullmatch(rf"{what}: \d+", line.quantity)]
        numbers = [int(line.quantity.removeprefix(f"{what}: ")) for line in lines]
        for side, color in (("reference", "C3"), ("ours", "C0")):
            values = [getattr(line, side) for line in lines]
            axes.plot(numbers, values, style, marker="o", markersize=4, color=color, label=f"{what}, {side}")
    return _finished(figure, axes)


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log", nonpositive="mask")
    legend_beside(figure)
    return figure
