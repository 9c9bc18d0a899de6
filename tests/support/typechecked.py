"""Annotations that are checked: jaxtyping's import hook, with beartype, around the array code.

Shapes are compared within one call, when a function is traced or called: a letter has
one size in all arguments, in the fields of those that are named tuples or dataclasses, and in what comes back.

Constructors are left alone: JAX rebuilds trees with whatever a transformation puts in the place of arrays, and
configurations check themselves.
"""

import contextlib
import dataclasses
import functools
import operator
import runpy
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from beartype.vale import Is
from jaxtyping import AbstractArray, config, install_import_hook

PACKAGES = ("mom_jax.ops", "mom_jax.layers", "mom_jax.models.blocks", "mom_jax.models.lm")
_CONF = BeartypeConf(is_pep484_tower=True)  # an int may stand for a float


def checker(function: Callable) -> Callable:
    """What the import hook puts around each function."""
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {name: _with_fields(hint) for name, hint in function.__annotations__.items()}
    return beartype(function, conf=_CONF)


def _with_fields(hint: Any) -> Any:
    """The same hint, for which the arrays in the fields of named tuples and dataclasses must hold too."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Self:  # means nothing to a function by itself
        return Any
    if isinstance(hint, type) and (hasattr(hint, "_fields") or dataclasses.is_dataclass(hint)):
        return Annotated[hint, Is[functools.partial(_fields_hold, hint)]]
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_with_fields, parts))
    if origin in (tuple, list, dict):
        return origin[tuple(map(_with_fields, parts))]
    return hint


def _fields_hold(cls: type, value: Any) -> bool:
    return all(is_bearable(getattr(value, name), hint, conf=_CONF) for name, hint in _array_fields(cls).items())


@functools.cache
def _array_fields(cls: type) -> dict[str, Any]:
    hints = {name: _with_fields(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}
    return {name: hint for name, hint in hints.items() if _holds_arrays(hint)}


def _holds_arrays(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return bool(_array_fields(get_args(hint)[0]))
    return any(map(_holds_arrays, get_args(hint))) or (isinstance(hint, type) and issubclass(hint, AbstractArray))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """For arguments of which the library's own complaint is tested."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def install() -> None:
    """Has modules of `PACKAGES` checked that are imported from now on."""
    # of `typing.Callable` and the like, which libraries put into annotations
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    install_import_hook(PACKAGES, "support.typechecked.checker")


def run(arguments: list[str]) -> None:
    """Runs a Python file with its arguments as a program of its own, checked too."""
    install()
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
