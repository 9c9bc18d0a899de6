"""From ``DataConfig.path`` to a sorted list of sources, each of which yields documents."""

import dataclasses
import glob
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePath

from mom_jax.data.documents import read_documents
from mom_jax.errors import InputError, install

# What a folder contributes; not .json, which in folders is rarely text. A file or glob may name any suffix.
TEXT_SUFFIXES = [
    ".txt",
    ".text",
    ".md",
    ".rst",
    ".tex",
    ".html",
    ".xml",
    ".csv",
    ".tsv",
    ".log",
    ".org",
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".rs",
    ".go",
    ".java",
    ".js",
    ".ts",
    ".jl",
    ".r",
    ".rb",
    ".sh",
    ".sql",
    ".swift",
    ".scala",
    ".kt",
    ".hs",
    ".lean",
    ".toml",
    ".yaml",
    ".yml",
    ".jsonl",
    ".ndjson",
    ".parquet",
]
_COMPRESSIONS = (".gz", ".zst", ".bz2")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class FileSource:
    """One file. ``name`` is its path relative to the root: the same on every machine."""

    name: str
    path: str
    size: int
    mtime_ns: int

    def documents(self, text_field: str) -> Iterator[str]:
        """The file's documents in order; raises `InputError` with file and line when it is broken."""
        return read_documents(Path(self.path), text_field)


@dataclasses.dataclass(frozen=True)
class HubSource:
    """One of the ``count`` files of a split of a Hugging Face dataset, streamed."""

    name: str
    dataset: str
    subset: str | None
    split: str
    index: int
    count: int
    size: None = None  # unknown before it is read

    def documents(self, text_field: str) -> Iterator[str]:
        """The rows' text; raises `InputError` when the hub cannot be reached or the field is missing."""
        rows = _hub_stream(self.dataset, self.subset, self.split).shard(num_shards=self.count, index=self.index)
        try:
            for number, row in enumerate(rows):
                if text_field not in row:
                    raise InputError("text_field", text_field, f"{self.name} has the columns {', '.join(row)}")
                if row[text_field] is not None and not isinstance(row[text_field], str):
                    raise InputError("text_field", text_field, f"row {number} of {self.name} is not text")
                if row[text_field]:
                    yield row[text_field]
        except InputError:
            raise
        except Exception as error:  # network, decompression and format errors of many libraries
            raise InputError("path", self.name, f"reading stopped ({_one_line(error)}); run again to resume") from error


Source = FileSource | HubSource


def resolve(spec: str, field: str = "path") -> list[Source]:
    """The sources that ``spec`` names, sorted by name; empty files among several are left out.

    Args:
        spec: see `DataConfig.path`; a prepared folder is not one of its forms here.
        field: the configuration field, for error messages.

    Raises:
        InputError: nothing there, unreadable folders, only empty files, or the package ``datasets`` is missing.
    """
    try:
        return _resolve(spec, field)
    except OSError as error:
        raise InputError(field, error.filename or spec, f"cannot be read ({error.strerror})") from error


def _resolve(spec: str, field: str) -> list[Source]:
    if spec == "stdlib":
        return _stdlib()
    path = Path(os.path.expanduser(spec))
    if spec.startswith("hf:"):
        return _hub(spec.removeprefix("hf:"), field)
    if path.is_dir():
        return _checked(_folder_files(path), path, field)
    if path.exists():
        return _checked([path], path.parent, field)
    if any(c in spec for c in "*?["):
        root = _glob_root(path)
        found = (Path(p) for p in glob.glob(str(path), recursive=True))
        return _checked([p for p in found if p.is_file()], root, field)
    hub = f" (a data set of the Hugging Face hub is written hf:{spec})" if _HUB_NAME.fullmatch(spec) else ""
    raise InputError(field, spec, f"no such file or folder{hub}; give text, jsonl or parquet files, a folder or a glob")


def _folder_files(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s != "__pycache__"]
        found += [Path(folder, n) for n in names if not n.startswith(".") and _is_text_name(n)]
    return [p for p in found if p.is_file()]


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave an unreadable folder out without a word


def _is_text_name(name: str) -> bool:
    suffixes = PurePath(name.lower()).suffixes
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in TEXT_SUFFIXES


def _glob_root(pattern: Path) -> Path:
    fixed = []
    for part in pattern.parts:
        if any(c in part for c in "*?["):
            break
        fixed.append(part)
    return Path(*fixed)


def _checked(paths: list[Path], root: Path, field: str) -> list[Source]:
    """Sources of ``paths`` that are not empty, sorted by their name under ``root``."""
    if not paths:
        raise InputError(
            field,
            root,
            f"holds no file that reads as text ({' '.join(TEXT_SUFFIXES[:4])} ...); name the files by a glob",
        )
    sources = []
    for path in paths:
        if not path.is_file():
            raise InputError(field, path, "is neither a file nor a folder")
        stat = path.stat()
        if stat.st_size:
            name = path.relative_to(root).as_posix()
            sources.append(FileSource(name, str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    if not sources:
        what = paths[0] if len(paths) == 1 else root
        raise InputError(field, what, "is empty" if len(paths) == 1 else "holds only empty files")
    return sorted(sources, key=lambda source: source.name)


def _stdlib() -> list[Source]:
    """Python files of the running interpreter's standard library, without installed packages.

    A few files of the library's tests are broken on purpose or not encoded in UTF-8; these are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in ("site-packages", "dist-packages", "__pycache__")]
        found += [Path(folder, n) for n in names if n.endswith(".py")]
    readable = [path for path in found if _is_utf8(path)]
    if not readable:
        raise InputError("path", "stdlib", f"this Python keeps no source files in {root}; give a path to text")
    return _checked(readable, root, "path")


def _is_utf8(path: Path) -> bool:
    try:
        blob = path.read_bytes()
        blob.decode()
    except (OSError, UnicodeDecodeError):
        return False
    return b"\0" not in blob


def _hub(spec: str, field: str) -> list[Source]:
    if importlib.util.find_spec("datasets") is None:
        raise InputError(field, spec, f"Hugging Face datasets need a package: {install('hf')}")
    dataset, subset, split, *rest = [*spec.split(":"), "", ""]
    if not dataset or any(rest):
        raise InputError(field, f"hf:{spec}", "is written hf:NAME[:config][:split]")
    if os.path.exists(dataset):  # the package would read that instead
        raise InputError(
            field, f"hf:{spec}", f"names the hub, but {dataset} is here; give it without hf:, or rename it"
        )
    subset, split = subset or None, split or "train"
    count = _hub_stream(dataset, subset, split).num_shards
    stem = ":".join(["hf", dataset, subset or "", split])
    return [HubSource(f"{stem}#{i:05d}", dataset, subset, split, i, count) for i in range(count)]


def _hub_stream(dataset: str, subset: str | None, split: str):
    import datasets  # an optional package, and slow to import
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what goes wrong reaches us as exceptions
    try:
        return datasets.load_dataset(dataset, subset, split=split, streaming=True)
    except Exception as error:  # the hub's errors share no base class
        remedy = (
            f"the Hugging Face hub gave: {_one_line(error)}; without a network, run mom-jax data prepare where there "
            "is one, copy the folder, and give it as path"
        )
        raise InputError("path", f"hf:{dataset}:{subset or ''}:{split}", remedy) from error


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
