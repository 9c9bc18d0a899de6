"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mom_jax.errors import InputError
from mom_jax.paths import check_folder_name, why_not_writable


def check_empty(folder: Path, field: str = "directory") -> None:
    """Raises `InputError` on ``field`` if something is in the folder or in its place, or if it cannot be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(field, str(folder), "exists and is not an empty folder; choose another name")
    check_folder_name(folder, field)
    why = why_not_writable(folder)
    if why:
        raise InputError(field, str(folder), f"cannot be written to ({why}); choose another place")


@contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place at the end; an error removes it."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
