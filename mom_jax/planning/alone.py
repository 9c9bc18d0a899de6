"""A call in a process of its own, for compilers: they may abort, or be killed for want of memory, and take it along.

Importing this module imports no JAX.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import resource
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
_LONGEST = 300  # characters of the last words that are shown
# What compilers write before they end: a line "F1128 23:21:25.047231 16207 fusion_emitter.cc:11591] ...".
_FATAL = re.compile(r"^(?:F\d{4} \S+ +\d+|LLVM ERROR:) (.*)$", re.MULTILINE)
_SIGNAL = re.compile(r"^\*\*\* (SIG\w+)", re.MULTILINE)


class Died(Exception):
    """The process ended before the call returned; the message says why, as far as it is known."""


def alone(call: Callable[..., Result], *arguments: Any) -> Result:
    """``call(*arguments)`` in a new process. What is not Python's own output there is kept from the terminal.

    Args:
        call: a function of a module.
        arguments: what can be pickled, as its result.

    Raises:
        Died: the process was ended by a signal, or ended itself.
        Exception: what the call raises; its traceback there is among the notes.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process in which JAX has started threads can deadlock
    receiving, sending = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="mom-jax-", suffix=".log") as said:
        process = context.Process(target=_answer, args=(sending, said.name, pickle.dumps((call, arguments))))
        process.start()
        sending.close()  # here, so that what is received ends with the process
        try:
            result, error, trace = receiving.recv()
        except EOFError:
            process.join()
            raise Died(_reason(Path(said.name), process.exitcode or 0)) from None
        finally:
            process.kill()
            process.join()
    if error is not None:
        error.add_note(trace)
        raise error
    return result


def _answer(sending: Any, said: str, asked: bytes) -> None:
    """In the new process; libraries are imported as the call is unpickled."""
    _redirect(said)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        call, arguments = pickle.loads(asked)
        answer = call(*arguments), None, ""
    except BaseException as error:  # noqa: BLE001 (the caller's to handle)
        answer = None, error, traceback.format_exc()
    sending.send(answer)


def _redirect(said: str) -> None:
    """What libraries write to stderr goes to a file, what Python writes stays."""
    with contextlib.suppress(AttributeError, OSError):  # where it is closed
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 2)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _reason(said: Path, status: int) -> str:
    text = said.read_text(encoding="utf-8", errors="replace")
    if found := _FATAL.search(text):
        words = " ".join(found[1].replace("] ", ": ", 1).split())
        return words if len(words) <= _LONGEST else words[:_LONGEST] + "..."
    if found := _SIGNAL.search(text):
        return found[1]
    return f"killed by signal {-status}, as where a machine is out of memory" if status < 0 else f"status {status}"
