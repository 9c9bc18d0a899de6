"""Huge pages are asked for once, where the kernel leaves the choice to programs."""

import os
import subprocess
import sys

import pytest

from mom_jax.cli import huge_pages, main

ASKED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """Environments of the processes that would have been started; a kernel of one's own, and a C library that can."""
    made = []
    monkeypatch.setattr(os, "execv", lambda program, words: made.append(os.environ.get(huge_pages.VARIABLE)))
    monkeypatch.setattr(huge_pages, "CHOICE", tmp_path / "enabled")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.39"))
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    huge_pages.CHOICE.write_text("always [madvise] never\n", encoding="ascii")
    return made


@pytest.mark.parametrize(
    "before, after",
    [
        ("", [ASKED]),
        ("glibc.malloc.check=1", [f"glibc.malloc.check=1:{ASKED}"]),
        (ASKED, []),
        ("glibc.malloc.hugetlb=0", []),
    ],
)
def test_what_the_environment_says_stays(restarts, monkeypatch, before, after):
    """Also that there shall be none."""
    monkeypatch.setenv(huge_pages.VARIABLE, before)
    huge_pages.use_huge_pages()
    assert restarts == after


@pytest.mark.parametrize("choice", ["[always] madvise never", "always madvise [never]", None])
def test_where_there_is_no_choice(restarts, choice):
    """All programs have them, or none has, or the kernel is another one."""
    huge_pages.CHOICE.unlink() if choice is None else huge_pages.CHOICE.write_text(choice, encoding="ascii")
    huge_pages.use_huge_pages()
    assert restarts == []


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("", "")])
def test_libraries_that_cannot_ask(restarts, monkeypatch, library):
    """glibc can since 2.35."""
    monkeypatch.setattr("platform.libc_ver", lambda: library)
    huge_pages.use_huge_pages()
    assert restarts == []


WORDS = [
    (["train", "--help"], 1),
    (["--no-compile-cache", "eval", "--help"], 1),
    (["generate", "--help"], 0),
    (["--version"], 0),
]


@pytest.mark.parametrize("words, asks", WORDS)
def test_which_commands_ask(restarts, monkeypatch, capsys, words, asks):
    """Those that compute for long; a call from Python never starts its process again."""
    monkeypatch.setattr(sys, "argv", ["mom-jax", *words])
    monkeypatch.setattr(main.importing, "in_command", False)
    assert main.main() == 0 and len(restarts) == asks
    restarts.clear()
    assert main.main(words) == 0 and restarts == []


def test_the_process_starts_again_as_it_was():
    """With its words and what it was to read, and only once."""
    program = """
import os, sys
from mom_jax.cli import huge_pages
huge_pages._may_ask = lambda: True
huge_pages.use_huge_pages()
print(os.environ[huge_pages.VARIABLE], sys.argv[1:], sys.stdin.read(), os.getpid())
"""
    environment = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-c", program, "a b", "ü"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        said, _ = process.communicate(b"read", timeout=60)
    assert said.decode().split("\n")[0] == f"{ASKED} ['a b', 'ü'] read {process.pid}"
