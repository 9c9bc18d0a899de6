"""From ``DataConfig.path`` to a sorted list of sources, each of which yields documents."""

import dataclasses
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from mom_jax.data.config import DataConfig
from mom_jax.data.documents import read_documents
from mom_jax.data.file_kinds import is_data
from mom_jax.data.folders import LeftOut, composed, folder_files, glob_files, glob_root, is_glob, matches
from mom_jax.data.hub import HubSource, hub_sources
from mom_jax.data.json_documents import OnError
from mom_jax.data.opening import check_packages
from mom_jax.data.passages import Passage
from mom_jax.errors import InputError
from mom_jax.paths import local_path

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class FileSource:
    """One file, or a part of it. ``name`` is its path relative to the root: the same on every machine.

    Some file systems hold an accent apart from its letter, so names are in Unicode's composed form (NFC).
    """

    name: str
    path: str
    size: int
    span: tuple[int, int] | None = None  # only lines that begin at these bytes
    passage: Passage | None = None  # only this side

    def documents(self, text_field: str, on_error: OnError) -> Iterator[str]:
        """The documents in order; what is broken goes to ``on_error`` as an `InputError` with file and line."""
        return read_documents(Path(self.path), text_field, on_error, self.span, self.passage)


Source = FileSource | HubSource


def place_of(source: Source) -> str:
    """What tells two sources apart, whichever way they were named."""
    return source.name if isinstance(source, HubSource) else os.path.realpath(source.path)


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a specification leads to."""

    sources: list[Source]
    left_out: LeftOut
    names_count: bool  # whether names may say what is held out: not of one file that was named, nor of the library


def find_sources(config: DataConfig, field: str = "path") -> Sources:
    """The sources that ``config.path`` or ``config.held_out_path`` names, sorted by name, each file once.

    Args:
        config: gives the path, ``text_field``, and what to ``exclude``.
        field: which of the two paths.

    Raises:
        InputError: nothing there, unreadable folders, only empty files, or the package ``datasets`` is missing.
    """
    spec = getattr(config, field)
    try:
        return _find(spec, config, field)
    except OSError as error:
        raise InputError(field, error.filename or spec, f"cannot be read ({error.strerror})") from error


def _find(spec: str, config: DataConfig, field: str) -> Sources:
    left_out = LeftOut()
    if spec == "stdlib":
        return Sources(_checked(_stdlib(left_out), _library(), config, field, left_out), left_out, False)
    if spec.startswith("hf:"):
        return Sources(list(hub_sources(spec.removeprefix("hf:"), field)), left_out, False)
    path = local_path(spec, field)
    if path.is_dir():
        files = folder_files(path, config.text_field, left_out)
        return Sources(_checked(files, path, config, field, left_out), left_out, True)
    if path.exists():
        return Sources(_checked([path], path.parent, config, field, left_out), left_out, False)
    if is_glob(spec):
        return Sources(_checked(glob_files(path, left_out), glob_root(path), config, field, left_out), left_out, True)
    is_hub_name = _HUB_NAME.fullmatch(spec) and not is_data(spec)
    hub = f" (a data set of the Hugging Face hub is written hf:{spec})" if is_hub_name else ""
    raise InputError(
        field,
        spec,
        f"no such file or folder{hub}; put it back, or give text, jsonl or parquet files, a folder or a glob",
    )


def _checked(paths: Iterable[Path], root: Path, config: DataConfig, field: str, left_out: LeftOut) -> list[Source]:
    """Sources of ``paths`` that are neither empty nor excluded nor the same again, sorted by name under ``root``."""
    sources: dict[str, Source] = {}
    unused = set(config.exclude)
    for path in paths:
        name = composed(path.relative_to(root).as_posix())
        if not path.is_file():
            raise InputError(field, path, "is neither a file nor a folder")
        place, size = os.path.realpath(path), path.stat().st_size
        excluding = {pattern for pattern in config.exclude if matches(name, pattern)}
        unused -= excluding
        if excluding:
            left_out.add("excluded", name)
        elif not size:
            left_out.add("empty", name)
        elif place in sources:
            left_out.add("linked twice", name)
        else:
            check_packages(path, field)
            sources[place] = FileSource(name, os.path.abspath(path), size)
    for pattern in unused:
        left_out.add("patterns to exclude that match nothing", pattern)
    if not sources:
        why = "; ".join(left_out.lines()) or "nothing matches"
        raise InputError(field, getattr(config, field), f"gives no text ({why}); name the files, or a glob of them")
    return sorted(sources.values(), key=lambda source: source.name)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib(left_out: LeftOut) -> Iterator[Path]:
    """Python files of the running interpreter's standard library, without installed packages.

    A few files of the library's tests are broken on purpose or not encoded in UTF-8; these are left out.
    """
    root, readable = _library(), []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in ("site-packages", "dist-packages", "__pycache__")]
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            if _is_utf8(path):
                readable.append(path)
            else:
                left_out.add("not UTF-8", path.relative_to(root).as_posix())
    if not readable:
        raise InputError("path", "stdlib", f"this Python keeps no source files in {root}; give a path to text")
    return iter(readable)


def _is_utf8(path: Path) -> bool:
    try:
        blob = path.read_bytes()
        blob.decode()
    except (OSError, UnicodeDecodeError):
        return False
    return b"\0" not in blob
