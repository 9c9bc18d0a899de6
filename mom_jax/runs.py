"""A run from outside: open it, train it, score it, and the files in which the results are.

Imports JAX; lm-evaluation-harness only where its tasks run.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from rich.console import Console

from mom_jax.data.loader import eval_batches
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError
from mom_jax.evals.perplexity import HeldOut, evaluate
from mom_jax.files import write_json
from mom_jax.interop.published import is_published
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.reports.markdown import write_report
from mom_jax.training.checkpoint import load_run
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.conversion import load_published
from mom_jax.training.log import time_left
from mom_jax.training.loop import Outcome, check_vocabulary, train
from mom_jax.training.processes import is_first
from mom_jax.training.sharding import AXES, make_mesh, shard_batch

EVALUATION_FILE = "eval.json"
TASKS_FILE = "tasks.json"
_KINDS = ("tasks", "groups")  # of results in that file
_ANSWERS = "answers"  # folder of what the model has answered


def train_and_report(config: TrainConfig, out: Console) -> Outcome:
    """Trains (or resumes) a run, then writes its report."""
    outcome = train(config, HeldOut(config.model.topk), out)
    if not is_first():
        return outcome
    out.print(outcome.message + (f" ({time_left(outcome.seconds)})" if outcome.seconds else ""))
    run_dir = Path(config.run_dir).expanduser()
    report = write_report(run_dir, read_evaluation(run_dir))
    out.print(f"report: {report}")
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


def _write_evaluation(run_dir: str, evaluation: dict[str, Any]) -> None:
    write_json(Path(run_dir).expanduser() / EVALUATION_FILE, evaluation)


def read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """A run's last evaluation, or None when it was never evaluated."""
    path = run_dir / EVALUATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def evaluate_run_on_tasks(
    run_dir: str,
    names: Iterable[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    sequence_length: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Runs tasks on a run's newest model and adds their results to ``tasks.json`` in its folder.

    Args:
        run_dir: the run, or a published model's folder.
        names: see `load_tasks`.
        include_path: folder of further task files.
        limit: documents of each task.
        sequence_length: the longest input; as in training unless given.
        batch_size: rows of a batch; as in training unless given, rounded up to the number of devices.

    Returns:
        `evaluate_tasks`'s result.

    Raises:
        InputError: no checkpoint, an unknown task, data that is not here, or a tokenizer that is not the model's.
    """
    from mom_jax.evals.harness.evaluate import evaluate_tasks, fingerprint  # imports lm-evaluation-harness
    from mom_jax.evals.harness.model import HarnessModel
    from mom_jax.evals.harness.tasks import find_tasks, load_tasks

    if jax.process_count() > 1:
        raise InputError("tasks", ",".join(names), "run in one process; start it on a single machine")
    names = list(names)
    manager = find_tasks(names, include_path)
    mesh = all_devices()
    folder = Path(run_dir).expanduser()
    with opened_run(run_dir, mesh) as (config, model, step):
        tokenizer = load_tokenizer(config.data.tokenizer)
        lm = HarnessModel(
            model,
            tokenizer,
            max_length=sequence_length or config.data.sequence_length,
            batch_size=-(-(batch_size or config.data.batch_size) // mesh.size) * mesh.size,
            place=lambda batch: shard_batch(batch, mesh),
        )
        tasks = load_tasks(names, manager, tokenizer, lm.max_length)
        answers = folder / _ANSWERS / f"{step}-{fingerprint(lm)}"
        found = evaluate_tasks(lm, tasks.values(), limit, answers)
    about = {"step": step, "sequence_length": lm.max_length, "limit": limit, "lm_eval": found["lm_eval"]}
    _add(folder / TASKS_FILE, {kind: {n: {**about, **r} for n, r in found[kind].items()} for kind in _KINDS})
    return found


def _add(path: Path, new: dict[str, dict[str, Any]]) -> None:
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    merged = {kind: {**old.get(kind, {}), **new[kind]} for kind in _KINDS}
    write_json(path, merged)
