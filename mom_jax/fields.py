"""Fields of configurations: a type says what a value may be, a `Range` beside it which numbers make sense.

Every configuration is a frozen dataclass whose annotations are its rules, and calls `check_fields` first of all when it
is made. So a value is checked in the same way whether it comes from Python, from a file or from the command line:

    learning_rate: Annotated[float, Range(above=0, most=100)] = 3e-4

Numbers are finite, a whole number is no float and no bool, text is no number. What depends on several fields
is left to the dataclass.
"""

import dataclasses
import functools
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from mom_jax.errors import InputError

_FLOAT32 = 2.0**-126, float(2**128 - 2**104)  # smallest normal, largest
_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "None",
    tuple: "a list",
    dict: "an object",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Range:
    """Numbers that a field may have: ``least <= value <= most``, ``above < value < below``, or one of ``also``."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return value in self.also or (self.least <= value <= self.most and self.above < value < self.below)

    def __str__(self) -> str:
        bounds = (
            ("at least", self.least),
            ("greater than", self.above),
            ("at most", self.most),
            ("below", self.below),
        )
        limits = " and ".join(f"{words} {_number(bound)}" for words, bound in bounds if math.isfinite(bound))
        return ", or ".join([limits, *map(_number, self.also)])

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return f"Range({', '.join(f'{name}={value}' for name, value in values.items())})"


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class Check:
    """What a function of (value, field) does not raise an `InputError` for."""

    function: Callable[[Any, str], None]


def _check_text(text: str, field: str) -> None:
    if not text:
        raise InputError(field, text, "must not be empty")
    if "\0" in text:
        raise InputError(field, text, "must not hold a NUL character")
    try:
        os.fsencode(text)  # bytes of names that are not UTF-8 stand in it as halves of pairs, but no others
    except UnicodeEncodeError as error:
        raise InputError(field, ascii(text), "holds half of a surrogate pair, which is no character") from error


Count = Annotated[int, Range(least=1, below=2**31)]
Seed = Annotated[int, Range(least=0, below=2**32)]  # what JAX and Grain take
Name = Annotated[str, Check(_check_text)]  # of a file, a folder, a field, ...
# Of models, far beyond any trained so far; whether it fits into memory shows when it is built.
Channels = Annotated[int, Range(least=1, most=2**20)]
Taps = Annotated[int, Range(least=1, most=2**8)]  # of short convolutions
Slots = Annotated[int, Range(least=1, most=2**16)]
Epsilon = Annotated[float, Range(least=1e-15, most=1)]  # of norms
Divisor = Annotated[float, Range(above=0, most=2**20)]
ImplName = Literal["auto", "reference", "xla", "tpu", "gpu", "mosaic"]
StateDtype = Literal["float32", "bfloat16"]  # that a cache keeps matrices of memories in


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks every field of a dataclass by its annotation; fields get their exact type (1 becomes 1.0 in a float).

    Args:
        config: a frozen dataclass that is being made.
        prefix: before a field's name in the message.

    Raises:
        InputError: names the first field whose value is of another type or out of its range.
    """
    for name, hint in field_types(type(config)).items():
        object.__setattr__(config, name, checked(prefix + name.rstrip("_"), getattr(config, name), hint))


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, ranges included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def checked(field: str, value: Any, hint: Any) -> Any:
    """``value`` in the exact type that ``hint`` names.

    Raises:
        InputError: it is of another type or out of its range.
    """
    for kind, rules in alternatives(hint):
        fitted = _fitted(value, kind)
        if fitted is not None:
            return _within(field, value, fitted[0], kind, rules)
    literals = [choice for kind, _ in alternatives(hint) for choice in typing.get_args(kind) if _is_literal(kind)]
    remedy = f"choose one of {', '.join(map(str, literals))}" if literals else f"expected {described(hint)}"
    raise InputError(field, value, remedy)


def alternatives(hint: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types that an annotation joins by ``|``, each with what ``Annotated`` says of it."""
    if typing.get_origin(hint) is Annotated:
        inner, *rules = typing.get_args(hint)
        for kind, more in alternatives(inner):
            yield kind, (*rules, *more)
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for choice in typing.get_args(hint):
            yield from alternatives(choice)
    else:
        yield hint, ()


def described(hint: Any) -> str:
    """What an annotation asks for, in words."""
    kinds = (typing.get_origin(kind) or kind for kind, _ in alternatives(hint))
    return " or ".join(_IN_WORDS.get(kind) or kind.__name__ for kind in kinds)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _fitted(value: Any, kind: Any) -> tuple[Any] | None:
    """The value as one of ``kind``, in a tuple; None if it is of another type."""
    if _is_literal(kind):
        return (value,) if isinstance(value, str) and value in typing.get_args(kind) else None
    if typing.get_origin(kind) is tuple:
        return (tuple(value),) if isinstance(value, list | tuple) else None
    number: Any = kind  # in the eyes of type checkers, whose int takes less
    if kind in (int, float):
        is_number = isinstance(value, numbers.Integral if kind is int else numbers.Real)
        if isinstance(value, bool) or not is_number:
            return None
        try:
            return (number(value),)
        except OverflowError:  # a whole number beyond all floats
            return (math.inf,)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    return (value,) if isinstance(value, kind) else None


def _within(field: str, original: Any, value: Any, kind: Any, rules: tuple[Any, ...]) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(checked(field, item, typing.get_args(kind)[0]) for item in value)
    if kind is float and not math.isfinite(value):
        raise InputError(field, original, "must be a finite number")
    if value is None:
        return None
    for rule in rules:
        if isinstance(rule, Range) and value not in rule:
            raise InputError(field, original, f"must be {rule}")
        if isinstance(rule, Check):
            rule.function(value, field)
    if kind is float and value and not _FLOAT32[0] <= abs(value) <= _FLOAT32[1]:
        raise InputError(field, original, "is beyond the range of float32, in which it is used")
    return value


def named_value(field: str, text: str, example: str) -> tuple[str, Any]:
    """The name and the value that ``name=value`` in ``field`` spells, the value in JSON.

    Raises:
        InputError: it is written in another way; ``example`` shows the right one.
    """
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        remedy = f"expected name=value with the value in JSON, as in {example}"
        raise InputError(field, text, remedy) from error
