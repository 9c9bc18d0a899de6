"""One folder, one writer: a lock that ends with its process, however that ends."""

import errno
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import filelock

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json
from mom_jax.paths import check_folder_name

_log = logging.getLogger(__name__)


class _Owner(TypedDict):
    pid: int
    host: str
    command: str


@contextmanager
def only_writer(folder: Path, what: str, field: str = "run_dir", *, wait: float = 0.0) -> Iterator[None]:
    """Keeps others from entering this with the same arguments, in this process or another one.

    The operating system holds the lock for the process and drops it at its end, so nothing has to be cleared away after
    a crash. It holds on network file systems that pass locks on; one that knows no locks is said to be unguarded.

    Args:
        folder: what is written into; it is made.
        what: is written there, in a word: the lock's name.
        field: what the error names.
        wait: seconds to wait for another writer's end.

    Raises:
        InputError: the folder cannot be created or has a file's name, or somebody else is in it; names process, host
            and command.
    """
    check_folder_name(folder, field)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # not the folder's fault
        raise InputError(field, folder, f"cannot be created ({error.strerror}); give another folder") from error
    lock, owner = filelock.FileLock(folder / f".{what}.lock"), folder / f".{what}.lock.json"
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        remedy = f"is in use: {_named(owner)}; wait until it ends, or choose another folder"
        raise InputError(field, folder, remedy) from None
    except (NotImplementedError, OSError) as error:
        if not _knows_no_locks(error):
            raise
        _log.warning("%s is on a file system without locks: make sure that no other command writes into it", folder)
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _knows_no_locks(error: NotImplementedError | OSError) -> bool:
    return isinstance(error, NotImplementedError) or error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _named(owner: Path) -> str:
    try:
        record = read_json(owner, _Owner, "")
    except InputError:  # it has only just begun, or has just ended
        return "another process is writing into it"
    return f"process {record['pid']} on {record['host']} is writing into it ({record['command'][:100]})"
