"""Commands that compute for long keep their arrays in huge pages, where the kernel leaves that to programs.

XLA asks for its buffers anew in every step, and on a CPU half of a step's time may go to the kernel, which hands them
out, zeroed, 4 KiB at a time. The C library asks for 2 MiB at a time if a variable says so before a process starts:
so a command starts itself again, once, with that variable.
"""

import os
import platform
import sys
from pathlib import Path

VERBS = ("train", "eval", "experiment", "demo")
CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # always, madvise or never; brackets around what holds
VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
    """Starts this process again if that gives it huge pages; does not return then.

    What is said of them in the environment already stays: ``GLIBC_TUNABLES=glibc.malloc.hugetlb=0`` is without.
    """
    before = os.environ.get(VARIABLE, "")
    if TUNABLE in before or not _may_ask():
        return
    os.environ[VARIABLE] = ":".join(filter(None, (before, f"{TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _may_ask() -> bool:
    """Whether programs have the choice, and this one's C library knows how to ask."""
    library, version = platform.libc_ver()
    knows = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    return knows and CHOICE.is_file() and "[madvise]" in CHOICE.read_text(encoding="ascii")
