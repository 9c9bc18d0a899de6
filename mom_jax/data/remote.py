"""Text at an address (``gs://``, ``s3://``, ``hf://``, ``https://``, ``memory://`` ...): copied to this machine first.

What is an address and how its files are listed and read is up to fsspec. A copy lies in the cache folder; what has not
changed there since is not copied again, by the sum, the tag or the size and time that the file system tells.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from mom_jax.errors import InputError, in_a_line, install
from mom_jax.files import read_json, temporary_path, write_json

if TYPE_CHECKING:
    from mom_jax.data.config import DataConfig

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_MAGIC = re.compile(r"[*?\[]")
_TELLING = ("size", "etag", "ETag", "md5Hash", "mtime", "updated", "created")  # keys of what file systems say of a file
_RECORD = ".copied.json"  # in a copy's folder: what each file was when it was copied


def is_address(place: str | None) -> bool:
    """Whether a place is at an address, and no local path."""
    return place is not None and _ADDRESS.fullmatch(place) is not None


def check_address(place: str, field: str, *, local: bool = False) -> None:
    """Raises `InputError` where nothing here knows the address's file system, or it is local and must not be."""
    scheme = place.partition("://")[0].lower()
    if scheme == "file" and not local:
        raise InputError(field, place, f"is an address; give the path itself: {place[len('file://') :]}")
    import fsspec  # slow to import

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        known = "gs://, s3://, hf://, https:// and what else fsspec knows"
        raise InputError(field, place, f"{scheme}:// is no file system; addresses are {known}") from error
    except ImportError as error:
        remedy = install(_EXTRAS[scheme]) if scheme in _EXTRAS else " ".join(str(error).split())[:160]
        raise InputError(field, place, f"the package for {scheme}:// addresses is missing: {remedy}") from error


def local_copy(place: str, cache_dir: str, field: str) -> str:
    """The local path that stands for an address: of a copy in the cache, which is brought up to date.

    Args:
        place: a file, a folder, or a glob.
        cache_dir: where copies go.
        field: the option, for messages.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    check_address(place, field)
    import fsspec

    folder = Path(os.path.expanduser(cache_dir)) / "copies" / hashlib.sha256(place.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        system, path = fsspec.core.url_to_fs(place)
        names, root = _listed(system, path)
        if not names:
            raise InputError(field, place, "nothing is there; check the address, and that you may read it")
        with filelock.FileLock(f"{folder}.lock"):  # of several processes one copies and the others wait
            _copy(system, names, root, folder)
    except InputError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise InputError(field, place, f"cannot be read ({in_a_line(error)})") from error
    return os.path.normpath(folder / os.path.relpath(path, root))


def _listed(system: Any, path: str) -> tuple[list[str], str]:
    """The files of an address in order, and the folder that their names are relative to."""
    if _MAGIC.search(path):
        root = path[: _MAGIC.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        return sorted(name for name in system.glob(path) if not system.isdir(name)), root
    if system.isfile(path):
        return [path], path.rpartition("/")[0]
    return (sorted(system.find(path)), path.rstrip("/")) if system.isdir(path) else ([], path)


def _copy(system: Any, names: list[str], root: str, folder: Path) -> None:
    """Brings the copies up to date, and removes those of files that are there no more."""
    try:
        known = read_json(folder / _RECORD, dict[str, str], "")
    except InputError:
        known = {}
    new = {}
    for name in names:
        local = folder / os.path.relpath(name, root)
        if not local.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name} leads outside of {root}")
        new[str(local.relative_to(folder))] = state = _state(system, name)
        if known.get(str(local.relative_to(folder))) == state and local.is_file():
            continue
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(local)
        try:
            system.get_file(name, str(temporary))
            os.replace(temporary, local)
        finally:
            temporary.unlink(missing_ok=True)
    for gone in known.keys() - new.keys():
        (folder / gone).unlink(missing_ok=True)
    write_json(folder / _RECORD, new)


def _state(system: Any, name: str) -> str:
    """What changes with a file's content, as far as its file system tells."""
    info = system.info(name)
    return json.dumps({key: str(info[key]) for key in _TELLING if info.get(key)}, sort_keys=True)


def with_local_copies(config: "DataConfig") -> "DataConfig":
    """``config`` with local copies in the place of its addresses.

    Raises:
        InputError: as `local_copy`.
    """
    changed = {
        field: local_copy(place, config.cache_dir, field)
        for field in ("path", "held_out_path")
        if is_address(place := getattr(config, field))
    }
    return dataclasses.replace(config, **changed) if changed else config
