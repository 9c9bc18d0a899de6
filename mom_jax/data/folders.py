"""The files of a folder or glob, and what is left out with the reason for it."""

import fnmatch
import functools
import glob
import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath

from mom_jax.data.file_kinds import is_about, is_data, kind, suffix
from mom_jax.data.json_documents import is_record
from mom_jax.data.opening import UNREADABLE, open_unpacked

_MAGIC = "*?["
_MADE_HERE = "of runs, models or shards"


class LeftOut:
    """Names of what was left out, by reason."""

    def __init__(self):
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, why: str, name: str) -> None:
        """Notes that ``name`` was left out because of ``why``."""
        self._names[why].append(name)

    def lines(self) -> list[str]:
        """One line in all, or none: counts, reasons and a few names."""
        parts = []
        for why, names in sorted(self._names.items()):
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names):,} {why} ({some})")
        return [f"left out: {'; '.join(parts)}"] if parts else []


def folder_files(root: Path, text_field: str, left_out: LeftOut) -> Iterator[Path]:
    """The data files below ``root``, in sorted order; links to folders are followed.

    Raises:
        OSError: a folder that cannot be read.
    """
    for path in _walk(root, root, {os.path.realpath(root)}, left_out):
        name = path.relative_to(root).as_posix()
        if is_about(name):
            left_out.add("about the data", name)
        elif not is_data(name):
            left_out.add(f"no known text ({suffix(name) or 'no suffix'})", name)
        elif suffix(name) == ".json" and kind(name) == "json" and not _holds_records(path, text_field):
            left_out.add(f"JSON without {text_field!r}", name)
        else:
            yield path


def _walk(folder: Path, root: Path, visited: set[str], left_out: LeftOut) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        name = path.relative_to(root).as_posix() + "/" * entry.is_dir()
        if entry.name.startswith(".") or entry.name == "__pycache__":
            left_out.add("hidden", name)
        elif entry.is_dir():
            place = os.path.realpath(path)
            if place in visited:
                left_out.add("linked twice", name)
                continue
            visited.add(place)
            if made_here(path):
                left_out.add(_MADE_HERE, name)
                continue
            yield from _walk(path, root, visited, left_out)
        elif entry.is_file():
            yield path
        else:
            left_out.add("broken links" if entry.is_symlink() else "no plain files", name)


def made_here(folder: Path) -> bool:
    """Whether a folder holds a run, a published model or prepared shards: its files are no text.

    Text and runs often lie in one folder, where a run's report would be trained on, and its eval.json be held out.
    """
    names = set(os.listdir(folder))
    suffixes = {PurePath(name).suffix for name in names}
    is_model = "config.json" in names and bool(names & {"checkpoints", "metrics.jsonl"} or ".safetensors" in suffixes)
    return is_model or ("index.json" in names and ".offsets" in suffixes)


def _holds_records(path: Path, text_field: str) -> bool:
    try:
        with open_unpacked(path) as stream:
            return is_record(path, stream, text_field)
    except UNREADABLE:
        return True  # reading it will say what is wrong


def is_glob(spec: str) -> bool:
    """Whether ``spec`` is a pattern."""
    return any(c in spec for c in _MAGIC)


def glob_root(pattern: Path) -> Path:
    """The folder in which a pattern's wildcards begin."""
    return Path(*itertools.takewhile(lambda part: not is_glob(part), pattern.parts))


def glob_files(pattern: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files that ``pattern`` matches, in sorted order; of a README and the like only those that it spells out."""
    root, is_made_here = glob_root(pattern), functools.cache(made_here)
    for match in sorted(glob.iglob(str(pattern), recursive=True)):
        path = Path(match)
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            left_out.add("folders that the pattern matches", name + "/")
        elif any(is_made_here(root / parent) for parent in list(PurePath(name).parents)[:-1]):
            left_out.add(_MADE_HERE, name)
        elif is_about(name) and PurePath(name).name.partition(".")[0] not in pattern.name:
            left_out.add("about the data", name)
        elif path.is_file():
            yield path
        else:
            left_out.add("no plain files", name)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches the name, a folder above it, or the last part of either."""
    path, pattern = PurePath(composed(name)), composed(pattern).removeprefix("**/").rstrip("/")
    places = [path, *path.parents][:-1]
    return any(fnmatch.fnmatchcase(form, pattern) for place in places for form in (place.as_posix(), place.name))


def composed(name: str) -> str:
    """A name in the form that is the same on every file system: letters with their accents (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name)
