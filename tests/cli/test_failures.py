"""Whatever ends a command is a line and a status that is not 0; only what nobody foresaw has a log, and names it."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mom_jax.cli.main import main
from mom_jax.errors import InputError


class JaxRuntimeError(RuntimeError):
    """Has the name of JAX's."""


def os_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


FAILURES = [
    (InputError("topk", 7, "must be small"), 2, "topk=7: must be small"),
    (InputError("run", "[/b]\n\x1b", "is no folder"), 2, r"run=[/b] \x1b: is no folder"),
    (os_error(errno.ENOSPC, "runs/x"), 1, "runs/x: the disk is full; free some space and run the same command again"),
    (os_error(errno.EDQUOT), 1, "your share of the disk is full"),
    (os_error(errno.EACCES, "runs/x"), 1, "runs/x: Permission denied"),
    (os_error(errno.EISDIR, "runs/[/b]"), 1, "runs/[/b]: Is a directory"),
    (os_error(errno.ENOENT, "runs/\udce9"), 1, r"runs/\udce9: No such file"),
    (os_error(errno.EMFILE, "a"), 1, "a: too many open files; raise the limit"),
    (os_error(errno.ENAMETOOLONG, "a" * 300), 1, "a" * 160 + "...: the name is too long"),
    (os_error(errno.EROFS, "a"), 1, "a: is on a read-only file system"),
    (os_error(errno.EIO), 1, "Input/output error"),
    (TimeoutError(), 1, "TimeoutError"),
    (ValueError("tensorstore: No space left on device"), 1, "the disk is full"),
    (MemoryError(), 1, "out of memory (on the host); use a smaller"),
    (np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f8")), 1, "out of memory (Unable to allocate"),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while allocating 8 bytes"), 1, "out of memory (RESOURCE"),
    (ModuleNotFoundError("No module named 'umap'", name="umap"), 1, "the package umap is not installed here"),
    (UnicodeEncodeError("ascii", "é", 0, 1, "no"), 2, "a text does not fit its encoding"),
    (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), 2, "a text does not fit its encoding"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


def run(error: BaseException, monkeypatch) -> int:
    def fail(args):
        raise error

    monkeypatch.setattr("mom_jax.cli.data.main", fail)
    return main(["data"])


@pytest.mark.parametrize(("error", "status", "message"), FAILURES, ids=[repr(error)[:40] for error, _, _ in FAILURES])
def test_what_was_foreseen_is_one_line(error, status, message, capsys, monkeypatch):
    assert run(error, monkeypatch) == status
    said = capsys.readouterr().err
    assert said.startswith("mom-jax: " + message) and said.count("\n") == 1 and "report it" not in said


@pytest.mark.parametrize(
    "error",
    [KeyError("foo"), AssertionError(), RecursionError("deep"), JaxRuntimeError("INTERNAL: \x1b"), ZeroDivisionError()],
    ids=repr,
)
def test_what_nobody_foresaw_says_so_and_is_written_down(error, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(error, monkeypatch) == 70
    said = capsys.readouterr().err
    assert said.startswith(f"mom-jax: unexpected {type(error).__name__} at test_failures.py:") and said.count("\n") == 1
    log = re.search(r"traceback is in (\S+)$", said)
    assert log and type(error).__name__ in Path(log[1]).read_text(encoding="utf-8")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run(error, monkeypatch) == 70
    assert "could not be written to a file" in capsys.readouterr().err


def test_a_broken_pipe_that_is_not_ours_is_told(capsys, monkeypatch):
    assert run(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch) == 1
    assert capsys.readouterr().err == "mom-jax: Broken pipe\n"


@pytest.mark.parametrize("platform", ["cuda", "no-such-platform"])
def test_a_platform_that_is_not_there(platform):
    code = "import jax, sys; from mom_jax.cli.failures import complain\ntry:\n    jax.devices()\nexcept BaseException"
    code += " as error:\n    sys.exit(complain(error))"
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "mom-jax: JAX finds no device (" in done.stderr and platform in done.stderr


@pytest.mark.parametrize("line", ["help train", "--help", "data --help"])
def test_a_reader_that_leaves_ends_short_verbs_quietly(line):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "mom_jax", *line.split()], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_stdout_is_told():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "mom_jax", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"mom-jax: the disk is full")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16-le"])
def test_mistakes_and_help_print_on_every_terminal(encoding):
    code = """
import json, sys
from mom_jax.cli.main import main
sys.exit(json.dumps([main(line) for line in json.loads(sys.argv[1])]))
"""
    lines = [["train", "mom-tiny", "--stpes", "中"], ["convert", "中", "\udce9", "é"], ["convert", "--help"]]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", code, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, env=environment)
    said = done.stderr.decode(encoding)
    assert "[2, 2, 0]" in said and "Traceback" not in said and "argument=é" in said.replace("\\xe9", "é")
