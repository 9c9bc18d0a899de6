"""What a file holds, by its name alone; upper and lower case are the same."""

from pathlib import PurePath
from typing import Literal

Kind = Literal["text", "json", "parquet", "arrow"]

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}
_RECORDS: dict[str, Kind] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
# What a folder contributes besides records. A file that is named may have any suffix.
# fmt: off
_TEXT = {
    ".txt", ".text", ".raw", ".tokens", ".log", ".md", ".rst", ".org", ".tex", ".html", ".htm", ".xml", ".csv", ".tsv",
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".jl", ".r", ".rb",
    ".sh", ".sql", ".swift", ".scala", ".kt", ".hs", ".lean", ".toml", ".yaml", ".yml",
}
# fmt: on
# Files about a data set or a program, not of it.
_ABOUT = ("readme", "license", "licence", "copying", "notice", "citation")
_ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def compression(name: str) -> str | None:
    """How the file is compressed, as its last suffix says: gzip, bz2, zstd, xz."""
    return COMPRESSIONS.get(PurePath(name).suffix.lower())


def suffix(name: str) -> str:
    """The suffix below the one of a compression, in lower case; empty without one."""
    path = PurePath(name)
    return (PurePath(path.stem) if compression(name) else path).suffix.lower()


def kind(name: str) -> Kind:
    """How the file is read; whatever is not known is text."""
    return _RECORDS.get(suffix(name), "text")


def is_data(name: str) -> bool:
    """Whether a folder contributes a file of this name."""
    return suffix(name) in _TEXT or suffix(name) in _RECORDS


def is_about(name: str) -> bool:
    """Whether the file is a README, a licence or a data set's description: no text, unless it is named."""
    base = PurePath(name).name.lower()
    return base in _ABOUT_DATA or base.partition(".")[0] in _ABOUT
