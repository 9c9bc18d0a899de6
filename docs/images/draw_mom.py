"""Draws the README's figure: one MoM layer, from a token to its output.

    python docs/images/draw_mom.py            writes mom.svg beside this file
    python docs/images/draw_mom.py out.png    any format matplotlib knows
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, FAINT, PAPER = "#1f2933", "#9aa5b1", "#ffffff"
TOKEN, ROUTER, ACTIVE, IDLE, SHARED, MIX = "#dbe7f5", "#fbe3c0", "#2f6fb3", "#d9dee4", "#3b8f6b", "#f3d3dc"
# The example: four routed memories, this token's two choices and their weights.
WEIGHTS = {0: None, 1: 0.7, 2: None, 3: 0.3}


def box(ax: Axes, x: float, y: float, width: float, height: float, label: str, color: str, size: float = 13) -> None:
    """A rounded box centred at (x, y) with its label inside."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.14",
            facecolor=color, edgecolor=INK, linewidth=1.2, zorder=3,
        )
    )
    ax.text(x, y, label, ha="center", va="center", fontsize=size, color=INK, zorder=4, linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float = 1.8) -> None:
    """An arrow between two points; a thin dashed one when the way is not taken."""
    taken = color != FAINT
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=15 if taken else 10, shrinkA=0, shrinkB=0, color=color,
            linewidth=width if taken else 1.0, linestyle="-" if taken else (0, (4, 3)), zorder=2,
        )
    )


def memory(ax: Axes, x: float, y: float, color: str, cells: int = 6, size: float = 0.15) -> None:
    """A memory, drawn as the K x V matrix that it is."""
    left, bottom = x - cells * size / 2, y - cells * size / 2
    for row in range(cells):
        for column in range(cells):
            shade = 0.55 + 0.45 * ((row * 5 + column * 3) % 7) / 6 if color != IDLE else 1.0
            ax.add_patch(
                Rectangle((left + column * size, bottom + row * size), size, size, facecolor=color, alpha=shade,
                          edgecolor=PAPER, linewidth=0.8, zorder=3)
            )
    width = cells * size
    ax.add_patch(Rectangle((left, bottom), width, width, fill=False, edgecolor=INK, linewidth=1.2, zorder=4))


def tokens(ax: Axes) -> None:
    """The sequence, with the current token marked."""
    for x, word, current in ((0.55, "the", False), (1.45, "quick", False), (2.35, "fox", True)):
        ax.add_patch(
            FancyBboxPatch((x - 0.4, 2.72), 0.8, 0.56, boxstyle="round,pad=0,rounding_size=0.1", zorder=3,
                           facecolor=TOKEN if current else PAPER, edgecolor=INK if current else FAINT, linewidth=1.2)
        )
        ax.text(x, 3.0, word, ha="center", va="center", fontsize=12, color=INK if current else FAINT, zorder=4)
    ax.text(2.35, 2.45, "token $x_t$", ha="center", va="center", fontsize=12, color=INK)


def memories(ax: Axes) -> None:
    """Routed memories with their ways in and out, and the shared one below."""
    x, ys = 7.0, (5.6, 4.2, 2.8, 1.4)
    for (index, weight), y in zip(WEIGHTS.items(), ys, strict=True):
        color = FAINT if weight is None else ACTIVE
        memory(ax, x, y, IDLE if weight is None else ACTIVE)
        arrow(ax, (4.95, 3.0 + 0.09 * (y - 3.0)), (x - 0.55, y), color)
        if weight is None:
            ax.text(x, y + 0.6, f"memory {index + 1}: frozen", fontsize=12, color="#66727f", ha="center")
        else:
            ax.text(x, y + 0.6, f"memory {index + 1}: written", fontsize=12, color=INK, ha="center")
            arrow(ax, (x + 0.5, y), (10.0, 3.0 + 0.22 * (y - 3.0)), ACTIVE)
            away = 0.4 if y > 3.0 else -0.5  # on the outer side of the arrow
            ax.text(9.15, 3.0 + 0.53 * (y - 3.0) + away, f"weight {weight}", fontsize=12, color=ACTIVE, ha="center")
    memory(ax, x, -0.1, SHARED)
    ax.text(x, -0.85, "shared memory: written by every token", fontsize=12, color=INK, ha="center")
    ax.plot([2.35, 2.35], [2.25, -0.1], color=SHARED, linewidth=1.8, zorder=2)
    arrow(ax, (2.35, -0.1), (x - 0.5, -0.1), SHARED)
    ax.plot([x + 0.5, 10.7], [-0.1, -0.1], color=SHARED, linewidth=1.8, zorder=2)
    arrow(ax, (10.7, -0.1), (10.7, 2.42), SHARED)
    ax.text(9.0, 0.08, "weight 1", fontsize=12, color=SHARED, ha="center")


def draw() -> plt.Figure:
    """The whole figure."""
    figure, ax = plt.subplots(figsize=(11.4, 6.6))
    ax.set(xlim=(0, 13.1), ylim=(-1.12, 6.5), aspect="equal")
    ax.axis("off")
    tokens(ax)
    box(ax, 4.2, 3.0, 1.5, 1.15, "router\nsoftmax,\ntop 2 of 4", ROUTER)
    arrow(ax, (2.78, 3.0), (3.42, 3.0), INK)
    memories(ax)
    box(ax, 10.7, 3.0, 1.4, 1.15, "weighted\nsum", MIX)
    arrow(ax, (11.4, 3.0), (12.15, 3.0), INK)
    ax.text(12.25, 3.0, "output\n$o_t$", fontsize=13, color=INK, va="center", linespacing=1.35)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    return figure


def main(argv: list[str]) -> None:
    """Writes the figure; the same input gives the same bytes."""
    path = Path(argv[1]) if len(argv) > 1 else Path(__file__).with_name("mom.svg")
    plt.rcParams.update({"svg.hashsalt": "mom-jax", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    metadata = {"Date": None} if path.suffix == ".svg" else None
    draw().savefig(path, dpi=110, facecolor=PAPER, metadata=metadata)


if __name__ == "__main__":
    main(sys.argv)
