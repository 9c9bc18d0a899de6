"""Checksums of a checkpoint's files: the storage layer below restores flipped bits without a word.

The manifest is written into the checkpoint's temporary folder just before that is renamed to its
final name, so a committed checkpoint always has one, and a folder without one is half written.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError

FORMAT_VERSION = 2
ITEMS = ("params", "state", "config", "data")
_NAME = "manifest.json"


def _entries(folder: Path) -> dict[str, list[Any]]:
    entries = {}
    for item in ITEMS:
        for path in sorted((folder / item).rglob("*")):
            if path.is_file():
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                entries[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
    return entries


def write_manifest(folder: Path) -> None:
    """Writes sizes and SHA-256 sums of every file of the checkpoint's items, and the format version."""
    temporary = folder / f".{_NAME}.tmp"
    manifest = {"format_version": FORMAT_VERSION, "files": _entries(folder)}
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(temporary, folder / _NAME)


def is_committed(folder: Path) -> bool:
    """Whether the checkpoint was written to its end."""
    return (folder / _NAME).is_file()


def verify(folder: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        InputError: another format version; a file that is missing, truncated or altered.
    """
    remedy = f"delete {folder} to fall back to the checkpoint before it"
    try:
        manifest = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        version, files = manifest["format_version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("checkpoint", str(folder / _NAME), f"is unreadable; {remedy}") from error
    if version != FORMAT_VERSION:
        raise InputError(
            "checkpoint",
            str(folder),
            f"has format version {version}, this program reads {FORMAT_VERSION}; "
            "use the program that wrote it, or another run_dir",
        )
    found = _entries(folder)
    for name, (size, digest) in files.items():
        if name not in found:
            raise InputError("checkpoint", str(folder / name), f"is missing; {remedy}")
        if found[name][0] != size:
            raise InputError(
                "checkpoint", str(folder / name), f"has {found[name][0]} bytes instead of {size}; {remedy}"
            )
        if found[name][1] != digest:
            raise InputError("checkpoint", str(folder / name), f"was altered (its SHA-256 differs); {remedy}")
