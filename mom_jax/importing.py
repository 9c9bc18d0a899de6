"""Imports: of things of a user's own, named ``package.module:name``, and of many modules at once."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from mom_jax.errors import InputError

in_command = False  # whether this process is the command's own, and no Python program that calls it
foreign: set[str] = set()  # the modules of a user's own that this process has imported


def imported(spec: str, field: str) -> tuple[ModuleType, Any]:
    """The module that ``spec`` names, and its attribute (None where it has none of that name).

    Modules are sought on Python's path, then in the current folder.

    Args:
        spec: ``package.module:name``.
        field: the option that it was given to, for the message.

    Raises:
        InputError: there is no such module, or it cannot be imported.
    """
    module, _, attribute = spec.partition(":")
    if module.partition(".")[0] != __package__:
        foreign.add(module)
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or " "):
            remedy = f"there is no module {error.name}; run from its folder, or put that on PYTHONPATH"
        else:
            remedy = f"importing {module or spec!r} failed with {type(error).__name__}: {error}"
        raise InputError(field, spec, remedy) from error
    return found, getattr(found, attribute, None)


@contextmanager
def loading() -> Iterator[None]:
    """While many modules load: what they make stays, so the command does not search it for garbage again and again."""
    if not in_command:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
