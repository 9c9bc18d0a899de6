"""Checksums of a checkpoint's files: the storage layer below restores flipped bits without a word.

The manifest is written into the checkpoint's temporary folder just before that is renamed to its
final name, so a committed checkpoint always has one, and a folder without one is half written.
"""

import hashlib
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json

FORMAT_VERSION = 2
NAME = "manifest.json"
ITEMS = ("params", "ema", "state", "config", "data")
_NEEDED = ("params", "config")  # weights alone have no more


class DamagedError(InputError):
    """A checkpoint that is not as it was written."""


class _Manifest(TypedDict):
    format_version: int
    step: NotRequired[int]  # was not always written
    files: dict[str, list[int | str]]  # path: [bytes, SHA-256]


def _entries(folder: Path) -> dict[str, list[Any]]:
    entries = {}
    for item in ITEMS:
        for path in sorted((folder / item).rglob("*")):
            if path.is_file():
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                entries[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
    return entries


def write_manifest(folder: Path, step: int) -> None:
    """Writes format version, step, and sizes and SHA-256 sums of every file of the checkpoint's items."""
    write_json(folder / NAME, {"format_version": FORMAT_VERSION, "step": step, "files": _entries(folder)})


def is_committed(folder: Path) -> bool:
    """Whether the checkpoint was written to its end."""
    return (folder / NAME).is_file()


def verify(folder: Path) -> None:
    """Compares the checkpoint in ``folder``, named by its step, with its manifest: the same files and no others.

    Raises:
        DamagedError: a file that is missing, truncated, altered or unknown; no manifest that can be read; another step.
        InputError: another format version.
    """
    try:
        manifest = read_json(folder / NAME, _Manifest, "it does not say what belongs to the checkpoint", "checkpoint")
    except InputError as error:
        raise DamagedError(error.field, error.value, error.remedy) from error
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        remedy = f"has format version {version}, this program reads {FORMAT_VERSION}"
        raise InputError("checkpoint", folder, f"{remedy}; use the program that wrote it, or another run_dir")
    step = manifest.get("step", folder.name)
    if str(step) != folder.name:
        raise DamagedError("checkpoint", folder, f"belongs to step {step} and has another name")
    _compare(folder, manifest["files"])


def _compare(folder: Path, listed: dict[str, list[int | str]]) -> None:
    stored = _entries(folder)
    for item in _NEEDED:
        if not any(name.startswith(f"{item}/") for name in listed):
            raise DamagedError("checkpoint", folder / NAME, f"lists no file of {item}")
    for name in sorted(listed.keys() | stored.keys()):
        if name not in stored:
            raise DamagedError("checkpoint", folder / name, "is missing")
        if name not in listed and Path(name).name.startswith("."):  # a file manager's, or a network file system's
            continue
        if name not in listed:
            raise DamagedError("checkpoint", folder / name, "is not a file of this checkpoint")
        if stored[name] != listed[name]:
            size, *rest = listed[name] or [0]
            problem = "was altered (its SHA-256 differs)" if rest else "is listed without its SHA-256"
            if stored[name][0] != size:
                problem = f"has {stored[name][0]} bytes instead of {size}"
            raise DamagedError("checkpoint", folder / name, problem)
