"""What a page is made of; the template shows these and knows nothing else."""

import base64
import dataclasses
import functools
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mom_jax.errors import InputError

Made = TypeVar("Made")
_NUMBER = re.compile(r"[-+−]?\.?\d|[-–]?$|nan$|-?inf$")
_SCALE = 96 / 150  # pictures have 150 dots to the inch, a page 96


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        title: above it.
        heading: one cell for each column.
        rows: of as many cells.
        note: below it.
        ours: how many of the first rows are ours, beside those of others.
    """

    title: str
    heading: list[str]
    rows: list[list[str]]
    note: str = ""
    ours: int = 0

    @functools.cached_property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers alone."""
        return [all(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.heading))]


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
        tables, pictures: in this order.
        more: (title, table or preformatted text), folded away.
    """

    title: str
    kind: str = ""
    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    command: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    more: list[tuple[str, Table | str]] = dataclasses.field(default_factory=list)


def readable(path: Path, make: Callable[[], Made]) -> Made:
    """What ``make`` makes of a file or folder of results.

    Raises:
        InputError: it is not of the form that this version writes.
    """
    try:
        return make()
    except json.JSONDecodeError as error:
        raise InputError("file", path, f"holds something that is not JSON ({error})") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("file", path, f"is not of the form this version writes ({error!r}); make it anew") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none.

    Raises:
        InputError: it is not JSON.
    """
    return readable(path, lambda: json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def shown(value: Any) -> str:
    """A value of a record in a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
