"""The files of results in a run's folder: ``eval.json``, held-out scores, and ``tasks.json``, results of tasks.

Both are added to, never replaced: results of another checkpoint, window or share of the text stand beside each other.
What is damaged or of another form is left out and said, so that no result is lost to an older file.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mom_jax.errors import InputError
from mom_jax.files import finite, misfit, read_json, write_json
from mom_jax.locks import only_writer

EVALUATION_FILE = "eval.json"
TASKS_FILE = "tasks.json"
KINDS = ("tasks", "groups")  # of results in the latter
_PATIENCE = 30  # seconds to wait while another command adds its results

Complain = Callable[[str], None]  # gets a line for each thing that is left out


class Bucket(TypedDict):
    """The loss of a range of positions in the window, [start, stop)."""

    start: int
    stop: int
    tokens: int
    loss: float


class Sample(TypedDict):
    """A continuation that the model wrote."""

    prompt: str
    text: str
    temperature: float


class Evaluation(TypedDict):
    """Held-out scores, as `perplexity.evaluate` gives them, and what was scored how."""

    step: int
    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float
    by_position: list[Bucket]
    load: NotRequired[list[list[float]]]  # [L][M]
    routing_entropy: NotRequired[list[float]]  # [L]
    ema: NotRequired[bool]  # whether of the parameters' moving average
    contribution: NotRequired[list[list[float]]]  # [L][G]
    data: NotRequired[str]
    text: NotRequired[str]  # fingerprint of the data
    sequence_length: NotRequired[int]
    windows: NotRequired[int]  # that were scored
    windows_in_all: NotRequired[int]  # of the held-out text
    date: NotRequired[str]
    baselines: NotRequired[dict[str, float]]  # bits per byte of n-gram models of the same text
    sample: NotRequired[Sample]


class TaskResult(TypedDict):
    """A task's scores by metric, and how they came about."""

    metrics: dict[str, float | None]
    stderr: dict[str, float | None]
    higher_is_better: dict[str, bool | None]
    samples: int
    step: int
    lm_eval: str
    fewshot: NotRequired[Any]
    version: NotRequired[Any]
    limit: NotRequired[float | None]


class GroupResult(TypedDict):
    """Scores of a group of tasks by metric."""

    metrics: dict[str, float | None]


class Tasks(TypedDict):
    """The results of all tasks and groups by name."""

    tasks: dict[str, TaskResult]
    groups: dict[str, GroupResult]


def is_complete(evaluation: Evaluation) -> bool:
    """Whether all of the held-out text was scored."""
    return evaluation.get("windows") == evaluation.get("windows_in_all")


def read_evaluations(folder: Path, complain: Complain) -> list[Evaluation]:
    """The evaluations in a folder's ``eval.json``: those of all held-out text first, then later steps.

    The file holds the first of them, and under ``others`` the rest; older versions wrote the last one alone.
    """
    content = _read(folder / EVALUATION_FILE, complain)
    others = content.pop("others", [])
    if not isinstance(others, list):
        complain(f"{folder / EVALUATION_FILE}: 'others' is not a list")
        others = []
    return [item for item in ([content, *others] if content else others) if _is_evaluation(item, folder, complain)]


def _is_evaluation(item: Any, folder: Path, complain: Complain) -> bool:
    wrong = misfit(item, Evaluation)
    if wrong is None and "load" in item:
        widths = {len(row) for row in item["load"]}
        if len(widths) != 1 or len(item["load"]) != len(item.get("routing_entropy", ())):
            wrong = "load and routing_entropy do not have the same layers"
    if wrong is None and not all(bits > 0 for bits in item.get("baselines", {}).values()):
        wrong = "baselines are not all positive"
    if wrong:
        complain(f"{folder / EVALUATION_FILE}: an evaluation is left out ({wrong})")
    return wrong is None


def add_evaluation(folder: Path, new: Evaluation, complain: Complain) -> list[Evaluation]:
    """Adds an evaluation to ``eval.json``, in the place of one of the same step, text, window and share of it.

    Returns:
        All of them, as `read_evaluations`.

    Raises:
        OSError: the file cannot be written.
    """
    with only_writer(folder, "results", "out", wait=_PATIENCE):
        old = read_evaluations(folder, complain)
        _set_aside(folder / EVALUATION_FILE, complain)
        evaluations = [new, *(item for item in old if _identity(item) != _identity(new))]
        first, *others = sorted(evaluations, key=lambda e: (is_complete(e), e["step"]), reverse=True)  # a stable order
        write_json(folder / EVALUATION_FILE, finite({**first, "others": others}), indent=2)
    return [first, *others]


def _identity(evaluation: Evaluation) -> tuple[Any, ...]:
    return tuple(evaluation.get(name) for name in ("step", "ema", "data", "text", "sequence_length", "windows"))


def read_tasks(folder: Path, complain: Complain) -> Tasks:
    """The results in a folder's ``tasks.json``."""
    content = _read(folder / TASKS_FILE, complain)
    by_kind: dict[str, dict[str, Any]] = {}
    for kind, form in zip(KINDS, (TaskResult, GroupResult), strict=True):
        results = content.get(kind, {})
        wrong = misfit(results, dict[str, Any])
        if wrong:
            complain(f"{folder / TASKS_FILE}: {kind} are left out ({wrong})")
            results = {}
        by_kind[kind] = {}
        for name, result in results.items():
            wrong = misfit(result, form, repr(name))
            if wrong:
                complain(f"{folder / TASKS_FILE}: a result is left out ({wrong})")
            else:
                by_kind[kind][name] = result
    return Tasks(tasks=by_kind["tasks"], groups=by_kind["groups"])


def add_tasks(folder: Path, new: Tasks, complain: Complain) -> None:
    """Adds results to ``tasks.json``, in the place of older ones of the same names.

    Raises:
        OSError: the file cannot be written.
    """
    with only_writer(folder, "results", "out", wait=_PATIENCE):
        old = read_tasks(folder, complain)
        _set_aside(folder / TASKS_FILE, complain)
        write_json(folder / TASKS_FILE, finite({kind: {**old[kind], **new[kind]} for kind in KINDS}), indent=2)


def _read(path: Path, complain: Complain) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file, or none that can be read."""
    if not path.exists():
        return {}
    try:
        return read_json(path, dict[str, Any], "it is left out", "file")
    except InputError as error:
        complain(str(error))
        return {}


def _set_aside(path: Path, complain: Complain) -> None:
    """Renames a file that is about to be replaced if it cannot be read, as a person may still repair it."""
    damaged = path.with_name(f"{path.name}.damaged")
    unreadable: list[str] = []
    _read(path, unreadable.append)
    if unreadable and path.is_file():
        os.replace(path, damaged)
        complain(f"{path} was renamed to {damaged.name}")
