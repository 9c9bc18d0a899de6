"""SHA-256 sums of files that this machine remembers, so that terabytes are read once and not at every start."""

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from mom_jax.data.opening import read_lines
from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json

Place = tuple[str, tuple[int, int] | None]  # a file, or whole lines of it

# A file that was just changed may change again without a new time stamp: its sum is not remembered yet.
_SETTLED = 2.0


def sum_of(place: Place) -> str:
    """The SHA-256 of a file, or of the lines that begin in a range of its bytes."""
    path, span = place
    if span is not None:
        return hashlib.sha256(read_lines(Path(path), *span)).hexdigest()
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp(path: str | Path) -> list[int]:
    """What changes when a file does: its time of change cannot be set back as the one of its content can."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class Sums:
    """Sums of the files that belong to one folder, in a file of ``cache_dir`` that may as well be lost.

    Args:
        cache_dir: folder of this machine's caches. Where it cannot be written nothing is remembered.
        about: the folder.
    """

    def __init__(self, cache_dir: str, about: Path):
        # Several machines may share the cache, and have other files at the same place.
        name = hashlib.sha256(os.fsencode(f"{socket.gethostname()}:{os.path.realpath(about)}")).hexdigest()[:32]
        self._path = Path(os.path.expanduser(cache_dir)) / "sums" / f"{name}.json"
        self._known: dict[str, list[int | str]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Reads what is remembered, and writes it back at the end; other processes wait meanwhile."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, NotImplementedError):  # a place that cannot be written
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(f"{self._path}.lock"))
            with contextlib.suppress(InputError):  # no such file yet, or a damaged one
                self._known = read_json(self._path, dict[str, list[int | str]], "")
            before = dict(self._known)
            try:
                yield
            finally:
                if self._known != before:
                    with contextlib.suppress(OSError):
                        write_json(self._path, self._known, indent=None)

    def recall(self, place: Place) -> str | None:
        """The sum if it is known and the file has not changed since."""
        known = self._known.get(_key(place))
        return str(known[-1]) if known and known[:-1] == stamp(place[0]) else None

    def remember(self, place: Place, stamped: list[int], digest: str) -> None:
        """Keeps a sum that was computed after ``stamped`` was taken."""
        if max(stamped[1:]) < (time.time() - _SETTLED) * 1e9:
            self._known[_key(place)] = [*stamped, digest]

    def of(self, places: Sequence[Place]) -> Iterator[str]:
        """The sums of ``places``, in order, as they are there; those that are not known are computed, several at once.

        Raises:
            OSError: a file cannot be read.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            yield from pool.map(self._of, places)

    def _of(self, place: Place) -> str:
        known = self.recall(place)
        if known is None:
            stamped = stamp(place[0])
            known = sum_of(place)
            self.remember(place, stamped, known)
        return known


def _key(place: Place) -> str:
    path, span = place
    return os.path.abspath(path) + (f"@{span[0]}-{span[1]}" if span else "")
