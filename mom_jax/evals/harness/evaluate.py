"""Runs tasks on a model, and what comes out as plain dictionaries."""

import hashlib
import json
import math
import os
import traceback
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from mom_jax.data.opening import one_line
from mom_jax.decoding import not_finite
from mom_jax.errors import InputError
from mom_jax.evals.harness.model import HarnessModel

_SCORING = 2  # raised whenever the same model would answer otherwise than before
_DRAWS = 1000  # of the bootstrap, for the standard errors of metrics that are not means


def evaluate_tasks(
    lm: HarnessModel, tasks: Iterable[Task | Group], limit: int | None, answers: Path | None
) -> dict[str, Any]:
    """Asks the model all that the tasks want to know.

    Args:
        lm: the model; call this under ``jax.set_mesh`` where it is sharded.
        tasks: from `load_tasks`.
        limit: documents of each task; None: all.
        answers: where answers are kept, without a suffix (see `fingerprint`); what stands there is not asked again.

    Returns:
        JSON-ready: ``lm_eval`` (its version), ``tasks`` and ``groups``, each by name with ``metrics``, and for tasks
        ``stderr``, ``higher_is_better``, ``samples`` (documents scored), ``fewshot`` and ``version``.

    Raises:
        InputError: a document that its task cannot read, or what `HarnessModel` refuses.
    """
    # The harness draws bootstrap samples in forked processes, and to fork a process that runs JAX may hang it.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    task_list: list[Any] = list(tasks)  # groups too, whatever the harness's annotation says
    try:
        results: Any = simple_evaluate(
            model=lm,
            tasks=task_list,
            limit=limit,
            use_cache=None if answers is None else str(answers),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=_DRAWS,
            log_samples=False,
        )
    except (InputError, OSError):
        raise
    except Exception as error:
        if _came_from_the_model(error):
            raise
        remedy = f"a document does not fit its task ({type(error).__name__}: {one_line(error)}); fix the task file"
        raise InputError("tasks", "as given", remedy) from error
    groups = {name: {"metrics": _metrics(values)} for name, values in results.get("groups", {}).items()}
    return {
        "lm_eval": version("lm_eval"),
        "tasks": {name: _task(results, name) for name in results["results"] if name not in results["group_subtasks"]},
        "groups": {name: group for name, group in groups.items() if group["metrics"]},
    }


def _came_from_the_model(error: Exception) -> bool:
    """Rather than from templates and functions of a task, over documents that they were not made for."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == HarnessModel.__module__ for frame, _ in frames)


def fingerprint(lm: HarnessModel) -> str:
    """Changes with all that answers depend on: weights, configuration, tokenizer, longest input.

    Raises:
        InputError: parameters that are NaN or infinite.
    """
    _, params = nnx.split(lm.model)
    sums = [np.asarray(jnp.stack([leaf.sum(), (leaf * leaf).sum()])) for leaf in jax.tree.leaves(params)]
    if not np.isfinite(sums).all():
        raise not_finite("parameters")
    rest = json.dumps([_SCORING, lm.model.config.to_dict(), lm.text.fingerprint, lm.max_length])
    return hashlib.sha256(rest.encode() + b"".join(s.tobytes() for s in sums)).hexdigest()[:16]


def _task(results: Any, name: str) -> dict[str, Any]:
    values = results["results"][name]
    better = results["higher_is_better"].get(name, {})
    return {
        "metrics": _metrics(values),
        "stderr": _metrics(values, "_stderr"),
        "higher_is_better": {metric: better.get(metric.partition(",")[0]) for metric in _metrics(values)},
        "samples": results["n-samples"][name]["effective"],
        "fewshot": results["n-shot"].get(name, 0),
        "version": results["versions"].get(name),
    }


def _metrics(values: dict[str, Any], suffix: str = "") -> dict[str, float]:
    """Numbers by metric; the harness's key is ``metric[_stderr],filter``, and a filter called none is left out.

    What is not a finite number is left out too.
    """
    numbers = {}
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        is_error = metric.endswith("_stderr")
        if not comma or is_error != bool(suffix) or isinstance(value, str):
            continue
        if not math.isfinite(value):  # an overflow, or the error of too few documents
            continue
        metric = metric.removesuffix("_stderr")
        numbers[metric if kept == "none" else f"{metric},{kept}"] = float(value)
    return numbers
