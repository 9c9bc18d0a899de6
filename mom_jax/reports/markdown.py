"""A run as a page: ``report.md`` and the pictures beside it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.errors import InputError
from mom_jax.files import write_atomically
from mom_jax.models.config import MoMConfig
from mom_jax.reports.pictures import Records, draw_pictures
from mom_jax.training.config import CONFIG_FILE, TrainConfig
from mom_jax.training.log import read_metrics


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
        write_atomically(run_dir / f"{name}.png", png)
    text = "\n".join(
        [
            *_summary(config, training, held_out),
            *(_evaluation(evaluation) if evaluation else []),
            *([extra, ""] if extra else []),
            *_gallery(pictures),
            "",
        ]
    )
    write_atomically(run_dir / "report.md", text)
    return run_dir / "report.md"


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
