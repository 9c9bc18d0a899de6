"""What went wrong, in a line that a user can act on, and the exit status.

2 is a user's mistake, 1 a failure of the machine or a run that diverged, 130 Ctrl-C, 141 a reader of the output that
left, as shells count; 70 is a mistake of this program.
"""

import errno
import os
import platform
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from mom_jax import __version__
from mom_jax.errors import DivergedError, InputError
from mom_jax.terminal import let_go, printable, reader_left

INTERRUPTED, READER_LEFT, UNEXPECTED = 130, 141, 70

_LONGEST = 160  # characters of a file's name that are shown
_SMALLER = "use a smaller --data.batch-size or --data.sequence-length, or --remat full for training"
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "your share of the disk is full; free some space and run the same command again",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 65536) and run the same command again",
    errno.EROFS: "is on a read-only file system; write somewhere else",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOMEM: "the machine is out of memory",
}


def complain(error: BaseException) -> int:
    """Prints the line of what ended a command, unless nobody reads any more, and returns the exit status."""
    if isinstance(error, BrokenPipeError) and reader_left(sys.stdout):
        let_go(sys.stdout)
        return READER_LEFT
    message, status = explain(error)
    with suppress(OSError):  # stderr may be a closed pipe or a full disk too
        print("mom-jax: " + printable(message), file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        let_go(sys.stdout)
    return status


def explain(error: BaseException) -> tuple[str, int]:
    """The line and the exit status of what ended a command; for an unexpected error, the line names a log file."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, DivergedError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, UnicodeError):
        remedy = "pass UTF-8, or set LANG=C.UTF-8 if file names are the problem"
        return f"a text does not fit its encoding ({error}); {remedy}", 2
    return _of_machine(error) or (_unexpected(error), UNEXPECTED)


def _of_machine(error: BaseException) -> tuple[str, int] | None:
    message = str(error)
    if isinstance(error, OSError):
        names = [_name(name) for name in (error.filename, error.filename2) if name is not None]
        what = _REMEDIES.get(error.errno or 0) or error.strerror or message or type(error).__name__
        return "".join(f"{name}: " for name in names) + what, 1
    if "No space left on device" in message:
        return f"{_REMEDIES[errno.ENOSPC]} ({message[:200]})", 1
    if isinstance(error, MemoryError) or (_of_xla(error) and "RESOURCE_EXHAUSTED" in message):
        return f"out of memory ({message[:200] or 'on the host'}); {_SMALLER}", 1
    if isinstance(error, RuntimeError | AssertionError) and _place(error).startswith("xla_bridge.py:"):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX finds no device ({message[:300] or platforms}); unset JAX_PLATFORMS, or set JAX_PLATFORMS=cpu", 1
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed here; run pip install -e . in the checkout again", 1
    return None


def _name(name: object) -> str:
    shown = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _place(error: BaseException) -> str:
    """File and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _of_xla(error: BaseException) -> bool:
    # The class is JAX's, which is not imported for this.
    return type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError")


def _unexpected(error: BaseException) -> str:
    what = f"unexpected {type(error).__name__} at {_place(error)}: {str(error)[:300] or 'no message'}"
    log = _write_log(error)
    place = f"the whole traceback is in {log}" if log else "its traceback could not be written to a file"
    return f"{what}; this is a bug in mom-jax, please report it: {place}"


def _write_log(error: BaseException) -> Path | None:
    with suppress(OSError):
        options = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "delete": False}
        with tempfile.NamedTemporaryFile(prefix="mom-jax-", suffix=".log", **options) as file:
            file.write(f"mom-jax {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
            file.write(f"{sys.argv}\n\n")
            file.writelines(traceback.format_exception(error))
        return Path(file.name)
    return None
