"""Bad input by the hundred: each trial runs a command and judges what it said and did.

Commands run inside this process, which has JAX loaded, unless a trial needs a process of its own.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# A small split, and a model and a training that take no time.
SPLIT = ["--data.held-out-fraction", "0.3"]
TINY = shlex.split("""
    --model.hidden-size 16 --model.num-hidden-layers 1 --model.head-dim 8 --model.num-heads 2 --steps 4
    --model.intermediate-size 16 --data.sequence-length 32 --data.batch-size 8 --checkpoint.every 2
    --log-every 1 --eval-every 2 --eval-windows 2 --optimizer.warmup-steps 1
""")

LIMIT = 120  # seconds of a command; the machine may be loaded
_LINE = re.compile(r"mom-jax: .+(=|: | is ).+")
_NOT_OURS = re.compile(r"(^|/)\.(train|tasks)\.lock$")  # empty, and kept from the first sitting on


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float
    hung: bool = False


class _Hung(BaseException):
    pass


def in_process(args: Sequence[str], stdin: bytes = b"") -> Ended:
    """The command in this process, as far as can be with streams, logging and the environment of its own."""
    from mom_jax.cli.main import main

    read = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2))
    begun, hung = time.monotonic(), False
    with (
        mock.patch.multiple(sys, stdin=read, stdout=out, stderr=err),
        mock.patch.object(logging.root, "handlers", []),
        mock.patch.dict(os.environ),
    ):
        try:
            with _alarm():
                status = main(list(args))
        except _Hung:
            status, hung = 70, True
        except BaseException as error:  # noqa: BLE001 (the finding itself)
            status = 70
            print(f"Traceback: {type(error).__name__} left main: {error}", file=err)
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (out, err) if not stream.flush()]
    return Ended(status, *texts, time.monotonic() - begun, hung or "_Hung" in texts[1])


def as_process(args: Sequence[str], stdin: bytes | None = b"", **environment: str) -> Ended:
    """The command as users run it; without ``stdin`` that stream is closed."""
    command, begun = [sys.executable, "-m", "mom_jax", *args], time.monotonic()
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT, env=os.environ | environment)
    except subprocess.TimeoutExpired as error:
        texts = [(text or b"").decode(errors="replace") for text in (error.stdout, error.stderr)]
        return Ended(70, *texts, LIMIT, hung=True)
    texts = [text.decode(errors="replace") for text in (done.stdout, done.stderr)]
    return Ended(done.returncode, *texts, time.monotonic() - begun)


class Trials:
    """The trials of one kind; `failures` says what went wrong in which."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def refused(self, args: Sequence[object], *says: str, run: Any = in_process, **options: Any) -> None:
        """The command must end with status 1 or 2 and a line or two that hold ``says``, and change no file."""
        before, words = contents(self.folder), list(map(str, args))
        ended = run(words, **options)
        self._count(words, ended, self._wrong(ended) or self._line(ended, says) or self._changed(before))

    def accepted(
        self,
        args: Sequence[object],
        *says: str,
        in_file: tuple[Path, str] | None = None,
        run: Any = in_process,
        **options: Any,
    ) -> None:
        """The command must succeed, for its input makes sense, and print ``says``, or write a text into a file."""
        words = list(map(str, args))
        ended = run(words, **options)
        lacking = [text for text in says if text not in ended.out + ended.err]
        if in_file is not None and in_file[1] not in in_file[0].read_text(encoding="utf-8"):
            lacking.append(f"{in_file[1]} in {in_file[0]}")
        wrong = self._wrong(ended) if ended.status else ("other line", f"lacks {lacking}") if lacking else None
        self._count(words, ended, ("wrong status", "refused") if ended.status and not wrong else wrong)

    def _wrong(self, ended: Ended) -> tuple[str, str] | None:
        if ended.hung:
            return "hang", f"{ended.seconds:.0f} s"
        if ended.status == 70 or "Traceback" in ended.out + ended.err:
            return "traceback", ""
        if ended.status == 0:
            return "silent acceptance", ""
        if ended.status not in (1, 2):
            return "wrong status", str(ended.status)
        return None

    def _line(self, ended: Ended, says: Sequence[str]) -> tuple[str, str] | None:
        lines = ended.err.splitlines()
        if not 1 <= len(lines) <= 2 or not all(_LINE.fullmatch(line) for line in lines) or len(ended.err) > 2000:
            return "other line", f"{len(lines)} lines"
        lacking = [text for text in says if text not in ended.err]
        return ("other line", f"lacks {lacking}") if lacking else None

    def _changed(self, before: dict[str, str]) -> tuple[str, str] | None:
        after = contents(self.folder)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        return ("half written", ", ".join(changed[:4])) if changed else None

    def _count(self, words: list[str], ended: Ended, wrong: tuple[str, str] | None) -> None:
        self.counts["trials"] += 1
        if wrong is not None:
            self.counts[wrong[0]] += 1
            shown = " ".join(word if len(word) < 100 else f"{word[:100]}..." for word in words)
            said = (ended.err or ended.out)[-600:].strip()
            self.failures.append(f"{wrong[0]} ({wrong[1]}): {shown!a}\n    {ended.status}: {said!a}")


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a digest of what is in it; links with where they lead."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            if _NOT_OURS.search(path):
                continue
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    found[path] = hashlib.file_digest(stream, "md5").hexdigest()
            else:
                found[path] = "folder"
    return found


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise _Hung

    kept = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
