"""The folders of a run's checkpoints: which of them are whole, and what is done about the others."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from mom_jax.errors import InputError
from mom_jax.paths import absolute
from mom_jax.training import manifest

_log = logging.getLogger(__name__)


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints, absolute."""
    return Path(absolute(run_dir, "run_dir")) / "checkpoints"


def step_folders(folder: Path) -> list[Path]:
    """The folders that are named by a step, in order."""
    if not folder.is_dir():
        return []
    steps = (path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir())
    return sorted(steps, key=lambda path: int(path.name))


def newest(folder: Path, set_aside: Callable[[Path], str]) -> tuple[int | None, list[str]]:
    """Finds the newest checkpoint that is whole, checking every byte of it.

    Damaged ones that are newer are logged as warnings and given to ``set_aside``, if there is a whole one at all.

    Args:
        folder: of the checkpoints.
        set_aside: moves a damaged checkpoint out of the way, and says in words what it did.

    Returns:
        (its step, or None when there is no checkpoint at all; what was reported about damaged ones).

    Raises:
        InputError: every checkpoint is damaged, or the newest whole one is of another format version.
    """
    steps = step_folders(folder)
    damaged: list[tuple[Path, manifest.DamagedError]] = []
    for path in reversed(steps):
        try:
            manifest.verify(path)
        except manifest.DamagedError as error:
            damaged.append((path, error))
            continue
        notes = [f"{error}; {set_aside(bad)}; going on with step {path.name}" for bad, error in damaged]
        for note in notes:
            _log.warning(note)
        return int(path.name), notes
    if steps != step_folders(folder):  # a run that goes on has written new ones and removed these
        return newest(folder, set_aside)
    if damaged:
        remedy = f"{damaged[0][1].remedy}, and there is no other whole checkpoint; use another run_dir to start over"
        raise InputError("checkpoint", damaged[0][1].value, remedy)
    return None, []


def whole_step(folder: Path, step: int) -> int:
    """``step``, whose checkpoint is there and whole.

    Raises:
        InputError: it is not.
    """
    steps = [path.name for path in step_folders(folder)]
    if str(step) not in steps:
        there = f"there are {', '.join(steps)}" if steps else "there is none at all"
        raise InputError("step", step, f"no checkpoint of this step in {folder}; {there}")
    manifest.verify(folder / str(step))
    return step


def set_aside(checkpoint: Path) -> str:
    """Renames a damaged checkpoint, so that it is in nobody's way; for the run's only writer."""
    names = (f"damaged-{checkpoint.name}{more}" for more in ("", *(f"-{n}" for n in range(2, 1000))))
    aside = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    checkpoint.rename(aside)
    return f"it was set aside as {aside.name}"
