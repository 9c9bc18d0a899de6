"""What several verbs do with a run; imports JAX."""

import functools
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from mom_jax.data.config import DataConfig
from mom_jax.data.loader import eval_batches
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.evals.perplexity import evaluate, held_out_loss
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.checkpoint import load_run
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.log import time_left
from mom_jax.training.loop import Outcome, check_vocabulary, train
from mom_jax.training.report import write_report
from mom_jax.training.sharding import make_mesh, shard_batch

EVALUATION_FILE = "eval.json"


def console() -> Console:
    """Where verbs print; the libraries' own warnings are kept out of it."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    return Console(file=sys.stdout)


def train_and_report(config: TrainConfig, out: Console) -> Outcome:
    """Trains (or resumes) a run, then writes its report."""
    outcome = train(config, functools.partial(held_out_loss, top_k=config.model.topk), out)
    out.print(outcome.message + (f" ({time_left(outcome.seconds)})" if outcome.seconds else ""), highlight=False, soft_wrap=True)
    run_dir = Path(config.run_dir).expanduser()
    report = write_report(run_dir, read_evaluation(run_dir))
    out.print(f"report: {report}", highlight=False, soft_wrap=True)
    return outcome


@contextmanager
def opened_run(run_dir: str) -> Iterator[tuple[TrainConfig, MoMForCausalLM, int]]:
    """A run's config, its newest model on all local devices, and the step; the mesh is set while it is entered."""
    mesh = make_mesh(MeshConfig())
    config, model, step = load_run(run_dir, mesh)
    with jax.set_mesh(mesh):
        yield config, model, step


def evaluate_run(config: TrainConfig, model: MoMForCausalLM, step: int, data_config: DataConfig, max_windows: int | None = None
                 ) -> tuple[dict[str, Any], PreparedData]:
    """Scores a run's model on held-out text; returns the evaluation and the data. Call it inside `opened_run`.

    Raises:
        InputError: bad data, another tokenizer than the model's, or a batch that does not divide over the devices.
    """
    data = prepared(data_config)
    check_vocabulary(config, data)
    mesh = make_mesh(MeshConfig())
    batches = (shard_batch(batch, mesh) for batch in eval_batches(data, data_config, max_windows=max_windows))
    # Every held-out token is scored but the first of each document, which nothing predicts.
    bytes_per_token = data.held_out.text_bytes / (len(data.held_out) - data.held_out.documents)
    scores = evaluate(model, batches, config.model.topk, bytes_per_token)
    return {"step": step, "data": data_config.path, "sequence_length": data_config.sequence_length, **scores}, data


def write_evaluation(run_dir: str | Path, evaluation: dict[str, Any]) -> Path:
    """Writes ``eval.json`` into the run's folder and returns its path."""
    path = Path(run_dir).expanduser() / EVALUATION_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(evaluation, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """A run's last evaluation, or None when it was never evaluated."""
    path = run_dir / EVALUATION_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def print_evaluation(evaluation: dict[str, Any], out: Console) -> None:
    """Prints tables of the scores, the loss by position, and the load of each memory."""
    scores = Table(title=f"held-out text, step {evaluation['step']}", title_justify="left")
    for name in ("tokens", "loss (nats)", "perplexity", "bits per byte"):
        scores.add_column(name, justify="right")
    scores.add_row(f"{evaluation['tokens']:,}", f"{evaluation['loss']:.4f}", f"{evaluation['perplexity']:.3f}", f"{evaluation['bits_per_byte']:.4f}")
    positions = Table("position", "tokens", "loss (nats)", title="by position in the window", title_justify="left")
    for bucket in evaluation["by_position"]:
        positions.add_row(f"{bucket['start']}-{bucket['stop'] - 1}", f"{bucket['tokens']:,}", f"{bucket['loss']:.4f}")
    memories = [f"memory {m}" for m in range(len(evaluation["load"][0]))]
    loads = Table("layer", *memories, "entropy (nats)", title="share of the assignments", title_justify="left")
    for layer, (load, entropy) in enumerate(zip(evaluation["load"], evaluation["routing_entropy"], strict=True)):
        loads.add_row(str(layer), *(f"{share:.3f}" for share in load), f"{entropy:.3f}")
    for table in (scores, positions, loads):
        out.print(table)
