"""When, on what and with which versions a run was trained: ``sittings.jsonl`` in its folder."""

import datetime
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mom_jax import __version__

SITTINGS_FILE = "sittings.jsonl"
_LIBRARIES = ("jax", "flax", "optax", "numpy")


def record_sitting(run_dir: Path, step: int, devices: str) -> None:
    """Adds a line for a sitting that begins.

    Args:
        run_dir: the run's folder, which exists.
        step: the step that the sitting goes on from.
        devices: number and kind, in words.
    """
    record = {"date": now(), "step": step, "devices": devices, "versions": versions()}
    with (run_dir / SITTINGS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_sittings(run_dir: str | Path) -> list[dict[str, Any]]:
    """The sittings in order: ``date``, ``step``, ``devices``, ``versions``. None of a model that was converted."""
    path = Path(run_dir) / SITTINGS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def now() -> str:
    """Date and time (UTC) as ``2026-01-31 12:34``."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on, and the kind of processor."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "mom-jax": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree without its libraries' metadata
            continue
    return found
