"""Things of a user's own, named ``package.module:name``."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from mom_jax.errors import InputError


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
