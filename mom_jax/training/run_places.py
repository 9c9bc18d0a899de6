"""Where runs lie: in folders, and at addresses, for which folders of this machine stand."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from mom_jax.data.remote import is_address
from mom_jax.errors import InputError
from mom_jax.paths import cache_folder, check_kept
from mom_jax.training.remote_run import RemoteRun

_log = logging.getLogger(__name__)


def check_run(place: str, field: str) -> None:
    """Raises `InputError` where ``place`` can be neither a run's folder nor its address."""
    if not is_address(place):
        check_kept(place, field)
    elif "\0" in place:
        raise InputError(field, repr(place), "contains a NUL byte, which no address can")


def stand_in(address: str, cache_dir: str) -> Path:
    """The folder of this machine for what is at an address; its name is the address's last part, as far as it goes."""
    address = address.rstrip("/")
    name = re.sub(r"[^\w.=@+-]+", "_", address.rpartition("/")[2], flags=re.ASCII).strip(".")[:100] or "run"
    return Path(os.path.expanduser(cache_dir)) / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16] / name


@contextmanager
def at_hand(place: str, step: int | None = None, field: str = "run") -> Iterator[str]:
    """The folder of a run that is read; of one at an address a copy, from which what is written beside goes back.

    Args:
        place: a folder, or an address.
        step: of the checkpoint; the newest one unless given.
        field: what errors name.

    Raises:
        InputError: nothing is there, it cannot be read, or what was written cannot be copied back.
    """
    if not is_address(place):
        yield place
        return
    run = RemoteRun(place, stand_in(place, str(cache_folder() / "read")), field)
    with filelock.FileLock(run.folder.parent / ".lock"):
        for note in run.fetch(step):
            _log.warning(note)
    if not (run.steps() or run.small_files()):
        raise InputError(field, place, "nothing is there; give the address of a run")
    with written_back(place, run.folder, field):
        yield str(run.folder)


@contextmanager
def written_back(place: str, folder: Path, field: str = "run_dir") -> Iterator[None]:
    """Copies what is written into a run's folder to its address, if it has one.

    Raises:
        InputError: it cannot be written to.
    """
    if not is_address(place):
        yield
        return
    run = RemoteRun(place, folder, field)
    run.mark()
    yield
    run.push_files()
