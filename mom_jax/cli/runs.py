"""What several verbs do with a run; imports JAX."""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from rich.console import Console
from rich.table import Table

from mom_jax.data.loader import eval_batches
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import StreamDecoder, load_tokenizer
from mom_jax.decoding import generate
from mom_jax.errors import InputError
from mom_jax.evals.perplexity import HeldOut, evaluate
from mom_jax.interop.published import is_published
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.checkpoint import load_run
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.conversion import load_published
from mom_jax.training.log import time_left
from mom_jax.training.loop import Outcome, check_vocabulary, train
from mom_jax.training.processes import is_first
from mom_jax.training.report import write_report
from mom_jax.training.sharding import AXES, make_mesh, shard_batch

EVALUATION_FILE = "eval.json"


def console() -> Console:
    """Where verbs print, the first of several processes alone.

    The checkpoint library's own log is kept out of it, for its errors reach us as exceptions.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return Console(file=sys.stdout, quiet=not is_first())


def train_and_report(config: TrainConfig, out: Console) -> Outcome:
    """Trains (or resumes) a run, then writes its report."""
    outcome = train(config, HeldOut(config.model.topk), out)
    if not is_first():
        return outcome
    out.print(
        outcome.message + (f" ({time_left(outcome.seconds)})" if outcome.seconds else ""),
        highlight=False,
        soft_wrap=True,
    )
    run_dir = Path(config.run_dir).expanduser()
    report = write_report(run_dir, read_evaluation(run_dir))
    out.print(f"report: {report}", highlight=False, soft_wrap=True)
    return outcome


def all_devices() -> Mesh:
    """A mesh that spreads the batch over every device."""
    return make_mesh(MeshConfig())


def one_device() -> Mesh:
    """A mesh of the first device alone, for a batch of one row."""
    return jax.make_mesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])


@contextmanager
def opened_run(run_dir: str, mesh: Mesh) -> Iterator[tuple[TrainConfig, MoMForCausalLM, int]]:
    """A run's config, its newest model on ``mesh``, and the step; the mesh is set while it is entered.

    A published model's folder serves as a run at step 0.
    """
    if is_published(Path(run_dir).expanduser()):
        config, model, step = *load_published(run_dir, mesh), 0
    else:
        config, model, step = load_run(run_dir, mesh)
    with jax.set_mesh(mesh):
        yield config, model, step


def evaluate_run(
    run_dir: str, *, max_windows: int | None = None, **changes: int
) -> tuple[dict[str, Any], PreparedData]:
    """Scores a run's newest model on held-out text and writes ``eval.json`` into its folder.

    Args:
        run_dir: the run.
        max_windows: score about this many windows instead of all.
        changes: fields of the run's data config to replace (``sequence_length``, ``batch_size``).

    Returns:
        (the evaluation, the data).

    Raises:
        InputError: bad data, another tokenizer than the model's, or a batch that does not divide over the devices.
    """
    mesh = all_devices()
    with opened_run(run_dir, mesh) as (config, model, step):
        wanted = dataclasses.replace(config.data, **changes)
        if wanted.batch_size % mesh.size:
            raise InputError(
                "batch_size", wanted.batch_size, f"must be a multiple of the number of devices ({mesh.size})"
            )
        data = prepared(wanted)
        check_vocabulary(config, data)
        batches = (shard_batch(batch, mesh) for batch in eval_batches(data, wanted, max_windows=max_windows))
        # Every held-out token is scored but the first of each document, which nothing predicts.
        bytes_per_token = data.held_out.text_bytes / (len(data.held_out) - data.held_out.documents)
        scores = evaluate(model, batches, config.model.topk, bytes_per_token)
    evaluation = {"step": step, "data": wanted.path, "sequence_length": wanted.sequence_length, **scores}
    _write_evaluation(run_dir, evaluation)
    return evaluation, data


class _DocumentEnd(Exception):
    """Breaks off `generate`, which would fill up the row with end tokens."""


def complete(
    config: TrainConfig,
    model: MoMForCausalLM,
    prompt: str,
    max_new_tokens: int,
    write: Callable[[str], None],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> None:
    """Writes the prompt and then its continuation, piece by piece as tokens come, up to the end of the document.

    Raises:
        InputError: the prompt holds no token, or the tokenizer is not the model's.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise InputError(
            "data.tokenizer",
            tokenizer.name,
            f"has {tokenizer.vocab_size} tokens but the model {config.model.vocab_size}; "
            "put the tokenizer file of the training back",
        )
    ids = tokenizer.encode(prompt)
    if len(ids) == 0:
        raise InputError("prompt", prompt or "''", "holds no token")
    decoder = StreamDecoder(tokenizer)

    def on_token(token: np.ndarray) -> None:
        if int(token[0]) == tokenizer.eos_id:
            raise _DocumentEnd
        write(decoder.feed(int(token[0])))

    write(prompt)
    with suppress(_DocumentEnd):
        generate(
            model,
            jnp.asarray(ids)[None],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            rng=jax.random.key(seed),
            eos_token_id=tokenizer.eos_id,
            on_token=on_token,
        )
    write(decoder.flush())


def _write_evaluation(run_dir: str, evaluation: dict[str, Any]) -> None:
    path = Path(run_dir).expanduser() / EVALUATION_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """A run's last evaluation, or None when it was never evaluated."""
    path = run_dir / EVALUATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def print_evaluation(evaluation: dict[str, Any], out: Console) -> None:
    """Prints tables of the scores, the loss by position, and the load of each memory."""
    scores = Table(title=f"held-out text, step {evaluation['step']}", title_justify="left")
    for name in ("tokens", "loss (nats)", "perplexity", "bits per byte"):
        scores.add_column(name, justify="right")
    scores.add_row(
        f"{evaluation['tokens']:,}",
        f"{evaluation['loss']:.4f}",
        f"{evaluation['perplexity']:.3f}",
        f"{evaluation['bits_per_byte']:.4f}",
    )
    positions = Table("position", "tokens", "loss (nats)", title="by position in the window", title_justify="left")
    for bucket in evaluation["by_position"]:
        positions.add_row(f"{bucket['start']}-{bucket['stop'] - 1}", f"{bucket['tokens']:,}", f"{bucket['loss']:.4f}")
    for table in (scores, positions):
        out.print(table)
    if "load" not in evaluation:
        return
    memories = [f"memory {m}" for m in range(len(evaluation["load"][0]))]
    loads = Table("layer", *memories, "entropy (nats)", title="share of the assignments", title_justify="left")
    for layer, (load, entropy) in enumerate(zip(evaluation["load"], evaluation["routing_entropy"], strict=True)):
        loads.add_row(str(layer), *(f"{share:.3f}" for share in load), f"{entropy:.3f}")
    out.print(loads)
