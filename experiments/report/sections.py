"""What a page is made of; the template shows these and knows nothing else."""

import base64
import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mom_jax.errors import InputError
from mom_jax.reports.tables import Table

Made = TypeVar("Made")
_SCALE = 96 / 150  # pictures have 150 dots to the inch, a page 96


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file and its description in words."""

    alt: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture itself as an address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the page."""
        width, height = struct.unpack(">II", self.png[16:24])  # the first chunk of every PNG file
        return round(width * _SCALE), round(height * _SCALE)


@dataclasses.dataclass(frozen=True)
class Section:
    """A run, a sweep, or what several have in common.

    Attributes:
        title: its name.
        kind: what it is, in a word or two.
        facts: (name, value).
        command: gives it again.
        left_out: what could not be read, a line each.
        notes: explanations of what follows.
        tables, texts, pictures: in this order; a text with its title.
        more: (title, table or preformatted text), folded away.
    """

    title: str
    kind: str = ""
    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    command: str = ""
    left_out: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    texts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    more: list[tuple[str, Table | str]] = dataclasses.field(default_factory=list)


def readable(path: Path, make: Callable[[], Made]) -> Made:
    """What ``make`` makes of results that were read from a file or folder.

    Raises:
        InputError: they are not of the form that this version writes.
    """
    try:
        return make()
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        remedy = f"is not of the form this version writes ({error!r}); create it again"
        raise InputError("file", path, remedy) from error


def shown(value: Any) -> str:
    """A value of a record in a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
