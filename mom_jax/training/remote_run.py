"""A run at an address (``gs://``, ``s3://``, ``file://`` ...), and the folder of this machine that stands for it.

What fsspec knows are stores without locks and renames, each with ways of its own. So a run is written into a folder of
this machine, and what is whole there is copied: of a checkpoint the manifest last, so that one without is half a copy.
There the newest sitting is the writer; an older one that still runs finds that out before it copies anything else.
"""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from mom_jax.data.remote import check_address
from mom_jax.errors import InputError, in_a_line
from mom_jax.files import parse_json, read_json, write_json
from mom_jax.training import manifest
from mom_jax.training.folders import step_folders

_CHECKPOINTS, _PART = "checkpoints", ".part"
_WRITER = ".writer.json"  # at the address: who writes there
_RECORD = ".copied.json"  # in the folder: the sum of the newest manifest that is at the address
_FILE = re.compile(rf"{_CHECKPOINTS}/(0|[1-9][0-9]*)/(.+)", re.DOTALL)


class _Writer(TypedDict):
    sitting: str
    pid: int
    host: str
    command: str


class RemoteRun:
    """A run's address and its folder.

    Args:
        address: of the run.
        folder: that stands for it; made if need be.
        field: what errors name.

    Raises:
        InputError: its file system is not known here, or cannot be reached.
    """

    def __init__(self, address: str, folder: Path, field: str = "run_dir"):
        self.address, self.folder, self._field = address, folder, field
        check_address(address, field, local=True)
        import fsspec  # slow to import

        options = {"auto_mkdir": True} if address.lower().startswith("file:") else {}
        with self._told("cannot be reached"):
            self._system, root = fsspec.core.url_to_fs(address, **options)
        self._root, self._sitting, self._sent = root.rstrip("/"), uuid.uuid4().hex, dict[str, tuple[int, int]]()
        if not self._root.strip("/"):
            raise InputError(field, address, "names no folder; give one below it")

    def claim(self) -> None:
        """Becomes the writer.

        Raises:
            InputError: nothing can be written there.
        """
        me = _Writer(
            sitting=self._sitting, pid=os.getpid(), host=socket.gethostname(), command=shlex.join(sys.argv)[:300]
        )
        with self._told("cannot be written to"):
            self._system.pipe_file(self._at(_WRITER), json.dumps(me).encode())
            self._check_writer()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are whole at the address, in order."""
        with self._told("cannot be read"):
            return _steps(self._names(), whole=True)

    def goes_on(self) -> bool:
        """Whether the folder is what is at the address, or goes on from it; else another machine has gone on there."""
        try:
            copied = read_json(self.folder / _RECORD, dict[str, str | None], "")["manifest"]
        except (InputError, KeyError):
            copied = None
        there = self.steps()
        if (self._sum(there[-1]) if there else None) != copied:
            return False
        here = [int(path.name) for path in step_folders(self.folder / _CHECKPOINTS) if manifest.is_committed(path)]
        return not there or max(here, default=-1) > there[-1] or self._is_here(there[-1])

    def fetch(self, step: int | None = None) -> list[str]:
        """Makes the folder what is at the address: the newest whole checkpoint, or that of ``step``, and all else.

        Returns:
            what the user should know.

        Raises:
            InputError: nothing there can be read, or every checkpoint is damaged.
        """
        (self.folder / _CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with self._told("cannot be read"):
            names = self._names()
            there = _steps(names, whole=True)
            for path in step_folders(self.folder / _CHECKPOINTS):
                if int(path.name) not in there or not self._is_here(int(path.name)):
                    shutil.rmtree(path)
            for path in self.small_files():
                path.unlink()
            self._get([name for name in names if not _FILE.fullmatch(name) and not name.startswith(".")], self.folder)
            self._remember(self._sum(there[-1]) if there else None)
            self.mark()
            return self._fetch_newest([step] if step in there else there[::-1], names)

    def _fetch_newest(self, steps: list[int], names: list[str]) -> list[str]:
        damaged: list[str] = []
        for step in steps:
            try:
                if not self._is_here(step):
                    self._fetch_checkpoint(step, names)
            except manifest.DamagedError as error:
                damaged.append(f"{self.address}: checkpoint {step} is damaged there ({error.value} {error.remedy})")
                continue
            return [f"{note}; going on with step {step}" for note in damaged]
        if damaged:
            raise InputError(self._field, self.address, f"every checkpoint is damaged: {damaged[0]}")
        return []

    def _fetch_checkpoint(self, step: int, names: list[str]) -> None:
        part = self.folder / _PART
        shutil.rmtree(part, ignore_errors=True)
        inside = f"{_CHECKPOINTS}/{step}/"
        try:
            self._get([name for name in names if name.startswith(inside)], part)
            manifest.verify(part / inside)
            os.rename(part / inside, self.folder / inside)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def mark(self) -> None:
        """What the folder holds now besides checkpoints counts as copied."""
        self._sent = {str(path): _state(path) for path in self.small_files()}

    def push_files(self) -> None:
        """Copies what has changed besides checkpoints."""
        with self._told("cannot be written to"):
            self._push_files()

    def _push_files(self) -> None:
        changed = {path: now for path in self.small_files() if self._sent.get(str(path)) != (now := _state(path))}
        self._put(changed)
        self._sent.update((str(path), now) for path, now in changed.items())

    def push(self, keep: int) -> None:
        """Copies what is new, and removes there what the run has removed, but for the newest ``keep`` checkpoints.

        Raises:
            InputError: another sitting has become the writer.
            Exception: whatever the file system raises; what is there stays whole.
        """
        self._check_writer()
        self._push_files()
        names = self._names()
        whole = _steps(names, whole=True)
        here = [path for path in step_folders(self.folder / _CHECKPOINTS) if manifest.is_committed(path)]
        for path in here[-keep:]:
            try:
                if int(path.name) not in whole or not self._is_same(int(path.name)):
                    self._push_checkpoint(path, replaces=int(path.name) in whole)
            except FileNotFoundError:
                if manifest.is_committed(path):
                    raise
                continue  # the run has removed it meanwhile
        self._clean_up(max((int(path.name) for path in here), default=-1), keep)

    def _push_checkpoint(self, path: Path, *, replaces: bool) -> None:
        seal, sealed = self._at(f"{_CHECKPOINTS}/{path.name}/{manifest.NAME}"), (path / manifest.NAME).read_bytes()
        if replaces:
            self._system.rm_file(seal)
        self._put(file for file in path.rglob("*") if file.is_file() and file.name != manifest.NAME)
        self._check_writer()
        self._system.pipe_file(seal, sealed)

    def _clean_up(self, newest: int, keep: int) -> None:
        names = self._names()
        whole = _steps(names, whole=True)
        kept = [step for step in whole if step <= newest][-keep:]
        for step in _steps(names, whole=False):
            if newest >= 0 and step not in kept:
                with suppress(FileNotFoundError):
                    self._system.rm_file(self._at(f"{_CHECKPOINTS}/{step}/{manifest.NAME}"))
                self._system.rm(self._at(f"{_CHECKPOINTS}/{step}"), recursive=True)
        self._remember(self._sum(kept[-1]) if kept else None)

    def _check_writer(self) -> None:
        writer = parse_json(self._system.cat_file(self._at(_WRITER)).decode(), _Writer)
        if writer["sitting"] != self._sitting:
            who = f"process {writer['pid']} on {writer['host']}: {writer['command']}"
            remedy = f"another command writes there since this one began ({who}); what it had not copied is in"
            raise InputError(self._field, self.address, f"{remedy} {self.folder}")

    def _is_here(self, step: int) -> bool:
        """Whether the folder holds the very checkpoint that is at the address, whole."""
        try:
            manifest.verify(self.folder / _CHECKPOINTS / str(step))
        except InputError:
            return False
        return self._is_same(step)

    def _is_same(self, step: int) -> bool:
        here = (self.folder / _CHECKPOINTS / str(step) / manifest.NAME).read_bytes()
        return self._sum(step) == hashlib.sha256(here).hexdigest()

    def _sum(self, step: int) -> str:
        content = self._system.cat_file(self._at(f"{_CHECKPOINTS}/{step}/{manifest.NAME}"))
        return hashlib.sha256(content).hexdigest()

    def _remember(self, newest: str | None) -> None:
        write_json(self.folder / _RECORD, {"manifest": newest})

    def small_files(self) -> list[Path]:
        """The folder's files besides checkpoints."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        names = ((path, path.relative_to(self.folder).parts) for path in found)
        return [path for path, parts in names if parts[0] != _CHECKPOINTS and not any(x.startswith(".") for x in parts)]

    def _names(self) -> list[str]:
        """All files at the address, by their names below it."""
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root)
        except FileNotFoundError:
            return []
        names = sorted(name[len(self._root) + 1 :] for name in found)
        for name in names:
            if ".." in name.split("/"):
                raise ValueError(f"{name} leads outside of the run")
        return names

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _get(self, names: list[str], folder: Path) -> None:
        if names:
            self._system.get([self._at(name) for name in names], [str(folder / name) for name in names])

    def _put(self, paths: Iterable[Path]) -> None:
        names = [(str(path), self._at(path.relative_to(self.folder).as_posix())) for path in paths]
        if names:
            self._system.put(*map(list, zip(*names, strict=True)))

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What a file system raises, which is up to each, as an `InputError`."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # of this machine
            remedy = f"{what} ({in_a_line(error)}); check the address, and what you may do there"
            raise InputError(self._field, self.address, remedy) from error


def _steps(names: list[str], *, whole: bool) -> list[int]:
    """The steps of the checkpoints among the names of files: of all, or of those that were copied to their end."""
    matches = filter(None, map(_FILE.fullmatch, names))
    return sorted({int(match[1]) for match in matches if not whole or match[2] == manifest.NAME})


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
