"""From names to tasks of the harness."""

import difflib
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from mom_jax.data.opening import one_line
from mom_jax.data.tokenizers import Tokenizer
from mom_jax.errors import InputError
from mom_jax.evals.harness.needles import NEEDLE_TASKS, needle_task
from mom_jax.evals.harness.recall import RECALL_SETS, recall_task
from mom_jax.evals.harness.suites import SUITES

# Tasks that the harness has not got, with what makes them.
OWN: dict[str, Callable[[str, Tokenizer, int], Task]] = {
    **dict.fromkeys(RECALL_SETS, recall_task),
    **dict.fromkeys(NEEDLE_TASKS, needle_task),
}


def load_tasks(
    names: Sequence[str], manager: TaskManager, tokenizer: Tokenizer, max_length: int
) -> dict[str, Task | Group]:
    """Tasks and groups by name, with their data.

    Args:
        names: see `find_tasks`.
        manager: from `find_tasks`.
        tokenizer, max_length: the model's, for the windows of the recall set and the lengths of needles.

    Raises:
        InputError: a task whose data or package is not here.
    """
    loaded: dict[str, Task | Group] = {}
    for name in _members(names):
        made: Any = _load(name, manager, tokenizer, max_length)
        for task in made if isinstance(made, list) else [made]:
            loaded.setdefault(task.name if isinstance(task, Group) else task.task_name, task)
    return loaded


def _members(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, {name: None})))


def find_tasks(names: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """A manager that knows all of ``names``; loads no data.

    The harness's own list takes seconds to read and is left out when nothing of it is asked for.

    Args:
        names: of tasks, groups or tags of the harness, of `SUITES`, or of `OWN`.
        include_path: folder of further task files (YAML), as the harness reads them.

    Raises:
        InputError: an unknown name, with the closest ones, or no such folder.
    """
    names = [name for name in _members(names) if name not in OWN]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what goes wrong reaches us as exceptions
    huggingface_hub.utils.logging.set_verbosity_error()
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError("include_path", include_path, "no such folder")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if any(name not in manager.task_index for name in names):
        manager = _all_tasks(include_path)
    unknown = [name for name in names if name not in manager.task_index]
    if not unknown:
        return manager
    known = [*manager.all_tasks, *OWN, *SUITES]
    close = difflib.get_close_matches(unknown[0], known, n=5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"mom-jax's own sets are {', '.join(SUITES)}"
    raise InputError("tasks", unknown[0], f"unknown; {hint} (`lm_eval ls tasks` lists all)")


@functools.lru_cache(maxsize=1)
def _all_tasks(include_path: str | Path | None) -> TaskManager:
    return TaskManager(include_path=include_path)


def _load(name: str, manager: TaskManager, tokenizer: Tokenizer, max_length: int) -> Any:
    try:
        if name in OWN:
            return OWN[name](name, tokenizer, max_length)
        return _top_level(manager, name)
    except ModuleNotFoundError as error:
        raise InputError("tasks", name, f"needs the package {error.name}: pip install {error.name}") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError("tasks", name, _remedy(name, manager, error)) from error
    except Exception as error:  # whatever the harness makes of a task file that is wrong
        remedy = f"its task file cannot be used ({type(error).__name__}: {one_line(error)}); fix it"
        raise InputError("tasks", name, remedy) from error


def _top_level(manager: TaskManager, name: str) -> list[Any]:
    loaded = manager.load([name])
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def _remedy(name: str, manager: TaskManager, error: Exception) -> str:
    reason = one_line(error)
    if name in RECALL_SETS:
        arguments = repr(RECALL_SETS[name].dataset)
    else:
        config = manager.task_index[name].cfg or {}
        path, part = config.get("dataset_path"), config.get("dataset_name")
        if path is None or config.get("dataset_kwargs", {}).get("data_files"):
            return f"its data cannot be loaded ({reason})"
        arguments = repr(path) + (f", {part!r}" if part else "")
    return (
        f'its data is not on this machine ({reason}); where there is a network, run python -c "import datasets; '
        f'datasets.load_dataset({arguments})" and copy its cache (~/.cache/huggingface, or what HF_HOME names) here'
    )
