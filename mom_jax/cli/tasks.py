"""What ``mom-jax eval RUN --tasks`` does; imports JAX and lm-evaluation-harness."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from mom_jax.cli.runs import all_devices, opened_run
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError
from mom_jax.evals.harness.evaluate import evaluate_tasks, fingerprint
from mom_jax.evals.harness.model import HarnessModel
from mom_jax.evals.harness.suites import suite_means
from mom_jax.evals.harness.tasks import find_tasks, load_tasks
from mom_jax.training.sharding import shard_batch

TASKS_FILE = "tasks.json"
_KINDS = ("tasks", "groups")  # of results in that file
_ANSWERS = "answers"  # folder of what the model has answered


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
    if jax.process_count() > 1:
        raise InputError("tasks", ",".join(names), "run in one process; start it on a single machine")
    names = list(names)
    manager = find_tasks(names, include_path)
    mesh = all_devices()
    folder = Path(run_dir).expanduser()
    with opened_run(run_dir, mesh) as (config, model, step):
        tokenizer = load_tokenizer(config.data.tokenizer)
        if tokenizer.vocab_size > config.model.vocab_size:
            remedy = f"has {tokenizer.vocab_size} tokens but the model {config.model.vocab_size}; put the model's back"
            raise InputError("data.tokenizer", tokenizer.name, remedy)
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
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def print_results(found: dict[str, Any], out: Console) -> None:
    """Prints one row for each metric of each task, then averages."""
    table = Table("task", "metric", title=f"lm-evaluation-harness {found['lm_eval']}", title_justify="left")
    for name in ("value", "standard error", "better", "documents"):
        table.add_column(name, justify="right")
    for name, task in found["tasks"].items():
        for metric, value in task["metrics"].items():
            error = task["stderr"].get(metric)
            better = {True: "higher", False: "lower", None: ""}[task["higher_is_better"][metric]]
            shown = "" if error is None else f"{error:.4f}"
            table.add_row(name, metric, f"{value:.4f}", shown, better, f"{task['samples']:,}")
    table.add_section()
    for name, group in found["groups"].items():
        for metric, value in group["metrics"].items():
            table.add_row(name, f"{metric} of the group", f"{value:.4f}", "", "", "")
    for name, value in suite_means(found["tasks"]).items():
        table.add_row(name, "average", f"{value:.4f}", "", "higher", "")
    out.print(table)
