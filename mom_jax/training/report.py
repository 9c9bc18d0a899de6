"""A run as a page: ``report.md`` and the pictures beside it."""

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.ops.router_statistics import DEAD_SHARE
from mom_jax.training.config import CONFIG_FILE, TrainConfig
from mom_jax.training.log import read_metrics

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


def write_report(run_dir: str | Path, evaluation: dict[str, Any] | None = None, extra: str = "") -> Path:
    """Writes ``report.md`` and its PNG pictures into ``run_dir``.

    Args:
        run_dir: a run with at least one record in its ``metrics.jsonl``.
        evaluation: what ``evals.perplexity.evaluate`` returned, to be shown as tables.
        extra: Markdown that follows the evaluation.

    Returns:
        The path of ``report.md``.

    Raises:
        InputError: no run there, or nothing was logged yet.
    """
    run_dir = Path(run_dir).expanduser()
    config = TrainConfig.from_file(run_dir / CONFIG_FILE)
    records = read_metrics(run_dir)
    training = [record for record in records if "loss" in record]
    held_out = [record for record in records if "held_out_loss" in record]
    if not training:
        raise InputError("run", str(run_dir), "has no metrics yet; train it for a few steps first")
    pictures = draw_pictures(config, records)
    for name, png in pictures.items():
        _write(run_dir / f"{name}.png", png)
    text = "\n".join(
        [
            *_summary(config, training, held_out),
            *(_evaluation(evaluation) if evaluation else []),
            *([extra, ""] if extra else []),
            *_gallery(pictures),
            "",
        ]
    )
    _write(run_dir / "report.md", text.encode())
    return run_dir / "report.md"


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


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


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


def describe_model(model: MoMConfig) -> str:
    """A model's size, memory and attention layers in words."""
    layers = model.num_hidden_layers
    words = [f"{layers} layer{'s' * (layers > 1)}", f"hidden size {model.hidden_size}"]
    if "memory" in model.layer_kinds:
        words.append(f"{model.num_heads} heads of {model.head_dim}")
        if model.mixture:
            words.append(f"{model.num_memories} memories, top {model.topk}{', shared memory' * model.shared_mem}")
        words.append(model.memory_rule)
    if "attention" in model.layer_kinds:
        words.append(f"{len(model.attn.layers)} attention layers of {model.attn.num_heads} heads")
    return ", ".join(words)


def _summary(config: TrainConfig, training: Records, held_out: Records) -> list[str]:
    last, model = training[-1], config.model
    speed = np.median([record["tokens_per_second"] for record in training])
    rows = [
        ("steps", f"{last['step']:,} of {config.steps:,}"),
        (
            "tokens per step",
            f"{config.data.batch_size * config.data.sequence_length:,} "
            f"({config.data.batch_size} windows of {config.data.sequence_length})",
        ),
        ("text", f"`{config.data.path}`, tokenizer `{config.data.tokenizer}`"),
        ("model", describe_model(model)),
        ("last training loss", f"{last['lm_loss']:.4f} nats per token"),
        *(
            [
                (
                    "last held-out loss in training",
                    f"{held_out[-1]['held_out_loss']:.4f} nats per token (step {held_out[-1]['step']})",
                )
            ]
            if held_out
            else []
        ),
        ("skipped steps", f"{last['bad_total']:.0f}"),
        ("median speed", f"{speed:,.0f} tokens/s"),
    ]
    return [
        f"# Training run {Path(config.run_dir).name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "The whole configuration is in `config.json`, every logged number in `metrics.jsonl`.",
        "",
    ]


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    lines = [
        "## Held-out text",
        "",
        "| tokens | loss (nats) | perplexity | bits per byte |",
        "|---:|---:|---:|---:|",
        f"| {evaluation['tokens']:,} | {evaluation['loss']:.4f} | {evaluation['perplexity']:.3f} "
        f"| {evaluation['bits_per_byte']:.4f} |",
        "",
        "| position in the window | tokens | loss (nats) |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {b['start']}-{b['stop'] - 1} | {b['tokens']:,} | {b['loss']:.4f} |" for b in evaluation["by_position"]
    ]
    if "load" not in evaluation:
        return [*lines, ""]
    memories = len(evaluation["load"][0])
    lines += [
        "",
        "| load | " + " | ".join(f"memory {m}" for m in range(memories)) + " | routing entropy (nats) |",
        "|---|" + "---:|" * (memories + 1),
    ]
    for layer, (load, entropy) in enumerate(zip(evaluation["load"], evaluation["routing_entropy"], strict=True)):
        lines.append(f"| layer {layer} | " + " | ".join(f"{share:.3f}" for share in load) + f" | {entropy:.3f} |")
    return [*lines, ""]


def _gallery(names: Iterable[str]) -> list[str]:
    return ["## Curves", "", *(f"![{name.replace('_', ' ').capitalize()}]({name}.png)" for name in names)]
