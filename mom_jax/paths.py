"""Places that a user names: local files and folders, and nothing that merely looks like one."""

import os
import re
import tempfile
from pathlib import Path

from mom_jax.errors import InputError

# One letter is a Windows drive. `Path` makes `gs:/bucket` of `gs://bucket`, so one slash is enough.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux and of most of its file systems; macOS has less for paths


def local_path(place: str | os.PathLike[str], field: str) -> Path:
    """The local path that a user wrote, with ``~`` expanded.

    Args:
        place: a file or folder, which need not exist.
        field: the option that it was given to, for the message.

    Raises:
        InputError: nothing at all, an address (``gs://``, ``s3://``, ``https://`` ...), or what no file can be called.
    """
    check_local(place, field)
    return Path(os.path.expanduser(place))


def check_local(place: str | os.PathLike[str], field: str) -> None:
    """Raises `InputError` where ``place`` cannot be a local path; see `local_path`."""
    text = os.fspath(place)
    if not text:
        raise InputError(field, "''", "must not be empty")
    if "\0" in text:
        raise InputError(field, repr(text), "contains a NUL byte, which no path can")
    address = _ADDRESS.fullmatch(text)
    if address:
        raise InputError(field, text, _remedy(address[1].lower(), address[2]))
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > _LONGEST_NAME or len(os.fsencode(text)) > _LONGEST_PATH:
        raise InputError(field, text, "is too long for a file system; give a shorter name")


def check_kept(place: str | os.PathLike[str], field: str) -> None:
    """`check_local` for what checkpoints, models and shards are kept in: its libraries open no name but UTF-8."""
    check_local(place, field)
    try:
        os.fspath(place).encode()
    except UnicodeEncodeError as error:
        raise InputError(field, place, "is not UTF-8; give it another name") from error


def _remedy(scheme: str, rest: str) -> str:
    if scheme == "hf":
        return f"must be written hf:{rest.removeprefix('datasets/') or 'OWNER/NAME'}"
    if scheme == "file":
        return f"is an address; give the path itself: /{rest}"
    return f"{scheme}:// addresses are not supported; copy or mount it, and give the local path"


def cache_folder() -> Path:
    """This user's folder for what can be made again: ``$XDG_CACHE_HOME/mom-jax``, or ``~/.cache/mom-jax``."""
    home = os.path.expanduser("~")
    if home == "~":  # an account without a name or a home, as in containers
        home = os.path.join(tempfile.gettempdir(), f"home-{os.getuid()}")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache")) / "mom-jax"


def absolute(place: str | os.PathLike[str], field: str) -> str:
    """`local_path` as text that means the same from every folder; links stay as they are."""
    return os.path.abspath(local_path(place, field))


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in ``folder``; None where one can, or could as soon as the folder is made.

    It is tried out, for permissions do not tell of mounts, quotas and file systems of other machines.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror}"


def check_folder_name(place: str | os.PathLike[str], field: str) -> None:
    """Raises `InputError` where a folder would be made with the name of a file, such as results.pdf."""
    ending = Path(place).suffix
    if _OF_FILES.fullmatch(ending) and not os.path.lexists(place):
        raise InputError(field, place, f"would be a folder, and ends in {ending} as files do; give a folder's name")


# Of what people want written, or have: a folder may well be called mom-1.5b or run.2.
_OF_FILES = re.compile(
    r"\.(bin|bz2|csv|docx?|gz|html?|ipynb|jpe?g|jsonl?|log|md|np[yz]|parquet|pdf|pkl|png|pth?|py|safetensors|svg|tar|tex|"
    r"tgz|toml|tsv|txt|xlsx?|xml|xz|ya?ml|zip|zst)",
    re.IGNORECASE,
)


def check_output_folder(folder: Path, field: str) -> None:
    """Raises `InputError` where `output_folder` would; makes nothing."""
    check_folder_name(folder, field)
    why = why_not_writable(folder)
    if why is not None:
        raise InputError(field, folder, f"cannot be written to ({why}); give another folder")


def output_folder(place: str | os.PathLike[str], field: str = "out") -> Path:
    """A folder for results, made if need be, before the work begins that they come from.

    Raises:
        InputError: it cannot be created, has a file's name, or nothing can be written there; names the cause.
    """
    folder = local_path(place, field)
    check_output_folder(folder, field)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(field, place, f"cannot be written to ({error.strerror}); give another folder") from error
    return folder
