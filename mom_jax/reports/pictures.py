"""The curves of a run as pictures."""

import functools
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom_jax.drawing import NEUTRAL, legend_beside, one_panel, picture
from mom_jax.ops.router_statistics import DEAD_SHARE
from mom_jax.reports.records import Records
from mom_jax.training.config import TrainConfig

_Record = dict[str, Any]


def draw_pictures(config: TrainConfig, records: Records) -> dict[str, bytes]:
    """The curves of a run as PNG files, by name.

    Args:
        config: of the run.
        records: with at least one of training.
    """
    training, held_out = records.training, records.held_out
    drawn: dict[str, Callable[[], Figure]] = {"loss": lambda: _loss(training, held_out)}
    routed: dict[str, tuple[list[_Record], Callable[[TrainConfig, list[_Record]], Figure]]] = {
        "load": (training, _load),
        "contribution": (training, _contribution),
        "routing_entropy": (training, _entropy),
        "dead_memories": (training, _dead),
        "routing_churn": (held_out, _churn),
    }
    for name, (source, draw) in routed.items():
        having = [record for record in source if name in record]
        if having:
            drawn[name] = functools.partial(draw, config, having)
    drawn["gradient_norm"] = lambda: _gradient_norm(config, training)
    drawn["learning_rate"] = lambda: _line(training, "learning_rate", "Learning rate", "learning rate")
    return {name: picture(draw) for name, draw in drawn.items()}


def _series(records: list[_Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r["step"] for r in records]), np.array([r[name] for r in records], float)


def _line(records: list[_Record], name: str, title: str, label: str) -> Figure:
    figure, axes = one_panel(title, "step", label)
    axes.plot(*_series(records, name), color="C0")
    axes.set_ylim(bottom=0)
    return figure


def _loss(training: list[_Record], held_out: list[_Record]) -> Figure:
    figure, axes = one_panel("Loss", "step", "cross entropy (nats per token)")
    steps, losses = _series(training, "lm_loss")
    axes.plot(steps, losses, color="C0", label=f"training\n(last {losses[-1]:.3f})")
    if held_out:
        steps, losses = _series(held_out, "held_out_loss")
        axes.plot(steps, losses, color="C3", marker="o", markersize=4, label=f"held out\n(last {losses[-1]:.3f})")
    legend_beside(figure)
    return figure


def _gradient_norm(config: TrainConfig, training: list[_Record]) -> Figure:
    figure, axes = one_panel("Gradient norm before clipping", "step", "global L2 norm")
    axes.plot(*_series(training, "grad_norm"), color="C0", label="gradient")
    limit = config.optimizer.clip_norm
    axes.axhline(limit, color=NEUTRAL, linestyle="--", linewidth=1, label=f"clipped\nabove {limit:g}")
    axes.set_ylim(bottom=0)
    legend_beside(figure)
    return figure


def _load(config: TrainConfig, training: list[_Record]) -> Figure:
    steps, load = _series(training, "load")  # load [records, L, M]
    memories = load.shape[-1]
    labels = [f"memory {memory}" for memory in range(memories)]
    title = f"Load per memory (top {config.model.topk} of {memories})"
    return _shares(steps, load, labels, title, "share of assignments", balanced=1 / memories)


def _contribution(config: TrainConfig, training: list[_Record]) -> Figure:
    steps, shares = _series(training, "contribution")  # [records, L, G]
    labels = [f"memory {memory}" for memory in range(shares.shape[-1])]
    if config.model.shared_mem:
        labels[-1] = "shared"
    return _shares(steps, shares, labels, "What each memory gives", "share of the squared norm of reads")


def _shares(
    steps: np.ndarray, shares: np.ndarray, labels: list[str], title: str, label: str, balanced: float | None = None
) -> Figure:
    """A panel for each layer of ``shares`` [records, L, memories]."""
    layers, memories = shares.shape[1:]
    columns = min(layers, 4)
    rows = -(-layers // columns)
    figure = Figure(figsize=(3.0 * columns + 1.5, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for layer, axes in enumerate(grid.flat):
        if layer >= layers:
            axes.set_visible(False)
            continue
        for memory in range(memories):
            axes.plot(steps, shares[:, layer, memory], label=labels[memory], color=_shade(memory, memories))
        if balanced is not None:
            axes.axhline(balanced, color=NEUTRAL, linestyle="--", linewidth=1, label="balanced")
        axes.set_title(f"layer {layer}")
        axes.set_ylim(0, max(2 / memories, 1.05 * _largest(shares)))
    figure.suptitle(title, fontsize=11, fontweight="bold")
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(label, fontsize=10)
    legend_beside(figure)
    return figure


def _entropy(config: TrainConfig, training: list[_Record]) -> Figure:
    figure, axes = one_panel("Routing entropy", "step", "mean entropy per token (nats)")
    _by_layer(axes, *_series(training, "routing_entropy"))
    memories = config.model.num_memories
    axes.axhline(np.log(memories), color=NEUTRAL, linestyle="--", linewidth=1, label=f"uniform,\nln {memories}")
    axes.set_ylim(0, 1.1 * max(np.log(memories), 0.1))
    legend_beside(figure)
    return figure


def _dead(config: TrainConfig, training: list[_Record]) -> Figure:
    figure, axes = one_panel(f"Dead memories (less than {DEAD_SHARE:.0%} of a balanced load)", "step", "memories")
    steps, dead = _series(training, "dead_memories")  # [records, L]
    _by_layer(axes, steps, dead, drawstyle="steps-post")
    axes.set_ylim(-0.05, max(1.05, 1.05 * _largest(dead)))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(figure)
    return figure


def _churn(config: TrainConfig, held_out: list[_Record]) -> Figure:
    figure, axes = one_panel("Routing churn between evaluations", "step", "share of tokens re-routed")
    _by_layer(axes, *_series(held_out, "routing_churn"), marker="o", markersize=4)
    axes.set_ylim(0, 1)
    legend_beside(figure)
    return figure


def _by_layer(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A line for each layer of ``values`` [records, L]."""
    layers = values.shape[1]
    for layer in range(layers):
        axes.plot(steps, values[:, layer], color=_shade(layer, layers), label=f"layer {layer}", **style)


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, initial=0, where=np.isfinite(values)))


def _shade(index: int, count: int) -> Any:
    """A colour of its own for each of ``count``: of the palette, or of the part of a scale that both pages show."""
    return f"C{index}" if count <= 10 else matplotlib.colormaps["viridis"](0.3 + 0.5 * index / (count - 1))
