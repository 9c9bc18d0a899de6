"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mom_jax.errors import InputError


def check_empty(folder: Path) -> None:
    """Raises `InputError` if something is in the folder, or in its place."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise InputError("directory", str(folder), "exists and is not an empty folder; choose another name")


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
