"""Run by itself, as one of several processes: command lines one after the other, which meet once."""

import contextlib
import io
import json
import sys

from mom_jax.cli.main import main
from mom_jax.training import processes


def meet_once() -> None:
    """Further lines find the others where one has met them: JAX meets only once in a process."""
    connect = processes._connect

    def first(*arguments):
        connect(*arguments)
        processes._connect = lambda *_: None
        processes.meet = lambda *_: {}

    processes._connect = first


def ended(line: list[str]) -> tuple[int, str]:
    """The exit status of a command line, and its complaint."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        return main(line), complaint.getvalue()


if __name__ == "__main__":
    meet_once()
    print(json.dumps([ended(line) for line in json.loads(sys.argv[1])]))
