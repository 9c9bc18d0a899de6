"""When, on what and with which versions a run was trained: ``sittings.jsonl`` in its folder."""

import datetime
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NotRequired, TypedDict

from mom_jax import __version__
from mom_jax.training.records import read_records

SITTINGS_FILE = "sittings.jsonl"
_LIBRARIES = ("jax", "flax", "optax", "numpy")


class Sitting(TypedDict):
    """A line of the file."""

    date: str
    step: int
    devices: str
    versions: dict[str, str]
    notes: NotRequired[list[str]]


def record_sitting(run_dir: Path, step: int, devices: str, notes: Sequence[str] = ()) -> None:
    """Adds a line for a sitting that begins.

    Args:
        run_dir: the run's folder, which exists.
        step: the step that the sitting goes on from.
        devices: number and kind, in words.
        notes: what was said when it began: settings that changed, checkpoints that were damaged.
    """
    record = {"date": now(), "step": step, "devices": devices, "versions": versions(), "notes": list(notes)}
    with (run_dir / SITTINGS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_sittings(run_dir: str | Path) -> list[Sitting]:
    """The sittings in order; none of a model that was converted. A damaged line is left out, with a warning."""
    return read_records(Path(run_dir) / SITTINGS_FILE, Sitting)[0]


def now() -> str:
    """Date and time (UTC) as ``2026-01-31 12:34``."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on, and the kind of processor."""
    return {"python": platform.python_version(), "machine": platform.machine(), **packages()}


def packages() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    found = {"mom-jax": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree without its libraries' metadata
            continue
    return found
