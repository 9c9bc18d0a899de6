"""Pictures in one style, without a background: readable on a light page and on a dark one."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

# Text and lines of the axes: as far from white as from the black of dark pages.
NEUTRAL = "#767d8a"
# Of matplotlib's hues, with a contrast of at least 3 to both.
_COLOURS = (
    "#2f7fc1", "#d9730d", "#2a9440", "#d9413c", "#9a6fc4", "#a0694f", "#cf5fb0", "#7a808c", "#8a8d20", "#1590a3",
)  # fmt: skip
_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=_COLOURS),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.size": 10,
    "lines.linewidth": 1.6,
    "savefig.transparent": True,
    "savefig.dpi": 150,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), NEUTRAL),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), NEUTRAL),
}


@contextmanager
def style() -> Iterator[None]:
    """Figures that are made and saved inside have the style."""
    with matplotlib.rc_context(_STYLE):
        yield


def picture(draw: Callable[[], Figure]) -> bytes:
    """What ``draw`` draws, in the style, as a PNG file."""
    drawn = io.BytesIO()
    with style():
        draw().savefig(drawn, format="png")
    return drawn.getvalue()


def one_panel(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure of one panel, with its title and the names of its axes."""
    # Figures are made without pyplot: no global state, no window system.
    figure = Figure(figsize=(6.0, 3.3), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def legend_beside(figure: Figure) -> None:
    """A legend to the right of the panels, where it hides nothing; it names each line once."""
    handles, labels = _named_once(figure)
    figure.legend(handles, labels, loc="outside right upper", ncols=1 + (len(labels) - 1) // 16)


def legend_below(figure: Figure, columns: int) -> None:
    """The same below the panels, in so many columns."""
    figure.legend(*_named_once(figure), loc="outside lower center", ncols=columns)


def _named_once(figure: Figure) -> tuple[list[Any], list[str]]:
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    named = {label: handle for handle, label in pairs}
    return list(named.values()), list(named)
