"""The curves of a run as pictures."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom_jax.ops.router_statistics import DEAD_SHARE
from mom_jax.training.config import TrainConfig

Records = list[dict[str, Any]]

_STYLE: dict[Any, Any] = {
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
}


def draw_pictures(config: TrainConfig, records: Records) -> dict[str, bytes]:
    """The curves of a run as PNG files, by name.

    Args:
        config: of the run.
        records: of `read_metrics`, with at least one of training.
    """
    training = [record for record in records if "loss" in record]
    held_out = [record for record in records if "held_out_loss" in record]
    routed: dict[str, Callable[[], Figure]] = {
        "load": lambda: _load(config, training),
        "routing_entropy": lambda: _entropy(config, training),
    }
    if "dead_memories" in training[-1]:
        routed["dead_memories"] = lambda: _dead(config, [record for record in training if "dead_memories" in record])
    churn = [record for record in held_out if "routing_churn" in record]
    if churn:
        routed["routing_churn"] = lambda: _churn(churn)
    drawn: dict[str, Callable[[], Figure]] = {
        "loss": lambda: _loss(training, held_out),
        **(routed if "load" in training[-1] else {}),
        "gradient_norm": lambda: _gradient_norm(config, training),
        "learning_rate": lambda: _line(training, "learning_rate", "Learning rate", "learning rate"),
    }
    return {name: draw_picture(draw) for name, draw in drawn.items()}


def draw_picture(draw: Callable[[], Figure]) -> bytes:
    """What ``draw`` draws, in the style of the report, as a PNG file."""
    drawn = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw().savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()


def _axes(title: str, y: str) -> tuple[Figure, Axes]:
    # Figures are made without pyplot: no global state, no window system.
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="step", ylabel=y)
    return figure, axes


def _series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r["step"] for r in records]), np.array([r[name] for r in records])


def _line(records: Records, name: str, title: str, label: str) -> Figure:
    figure, axes = _axes(title, label)
    axes.plot(*_series(records, name), color="C0")
    axes.set_ylim(bottom=0)
    return figure


def _loss(training: Records, held_out: Records) -> Figure:
    figure, axes = _axes("Loss", "cross entropy (nats per token)")
    axes.plot(*_series(training, "lm_loss"), color="C0", label="training")
    if held_out:
        steps, losses = _series(held_out, "held_out_loss")
        axes.plot(steps, losses, color="C3", marker="o", markersize=4, label="held out")
        axes.annotate(
            f"{losses[-1]:.3f}",
            (steps[-1], losses[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color="C3",
        )
    axes.legend()
    return figure


def _gradient_norm(config: TrainConfig, training: Records) -> Figure:
    figure, axes = _axes("Gradient norm before clipping", "global L2 norm")
    axes.plot(*_series(training, "grad_norm"), color="C0")
    axes.axhline(
        config.optimizer.clip_norm,
        color="0.4",
        linestyle="--",
        linewidth=1,
        label=f"clipped above {config.optimizer.clip_norm:g}",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _load(config: TrainConfig, training: Records) -> Figure:
    steps, load = _series(training, "load")  # load [records, L, M]
    layers, memories = load.shape[1:]
    columns = min(layers, 4)
    rows = -(-layers // columns)
    figure = Figure(figsize=(3.0 * columns + 1.5, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for layer, axes in enumerate(grid.flat):
        if layer >= layers:
            axes.set_visible(False)
            continue
        for memory in range(memories):
            axes.plot(steps, load[:, layer, memory], label=f"memory {memory}", color=_shade(memory, memories))
        axes.axhline(1 / memories, color="0.4", linestyle="--", linewidth=1, label="balanced")
        axes.set_title(f"layer {layer}")
        axes.set_ylim(0, max(2 / memories, float(load.max()) * 1.05))
    figure.suptitle(f"Load per memory (top {config.model.topk} of {memories})", fontsize=11, fontweight="bold")
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("share of assignments", fontsize=10)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _entropy(config: TrainConfig, training: Records) -> Figure:
    figure, axes = _axes("Routing entropy", "mean entropy of a token's routing (nats)")
    steps, entropy = _series(training, "routing_entropy")  # [records, L]
    _by_layer(axes, steps, entropy)
    memories = config.model.num_memories
    axes.axhline(np.log(memories), color="0.4", linestyle="--", linewidth=1, label=f"uniform, ln {memories}")
    axes.set_ylim(0, 1.1 * max(np.log(memories), 0.1))
    axes.legend(ncols=1 + entropy.shape[1] // 8, loc="lower left")
    return figure


def _dead(config: TrainConfig, training: Records) -> Figure:
    figure, axes = _axes(f"Dead memories (less than {DEAD_SHARE:.0%} of a balanced load)", "memories")
    steps, dead = _series(training, "dead_memories")  # [records, L]
    _by_layer(axes, steps, dead, drawstyle="steps-post")
    axes.set_ylim(-0.05, max(1.05, 1.05 * float(dead.max())))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(ncols=1 + dead.shape[1] // 8, loc="upper right")
    return figure


def _churn(held_out: Records) -> Figure:
    figure, axes = _axes("Routing churn between evaluations", "share of tokens with other memories")
    steps, churn = _series(held_out, "routing_churn")  # [records, L]
    _by_layer(axes, steps, churn, marker="o", markersize=4)
    axes.set_ylim(0, 1)
    axes.legend(ncols=1 + churn.shape[1] // 8, loc="upper right")
    return figure


def _by_layer(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A line for each layer of ``values`` [records, L]."""
    layers = values.shape[1]
    for layer in range(layers):
        axes.plot(steps, values[:, layer], color=_shade(layer, layers), label=f"layer {layer}", **style)


def _shade(index: int, count: int) -> Any:
    return f"C{index}" if count <= 10 else matplotlib.colormaps["viridis"](index / max(count - 1, 1))
