"""The one exception type for mistakes that a user can make and correct, and the one for a run that diverged."""

import importlib.util
import os
import reprlib
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 400  # characters of a value that are shown


class InputError(ValueError):
    """Bad input: names the field, the value and the remedy in one line.

    The command line prints it as a single line and exits with status 2; library
    users see an ordinary ``ValueError``.

    Example:
        >>> raise InputError("topk", 5, "must lie between 1 and num_memories (4)")
        Traceback (most recent call last):
        ...
        mom_jax.errors.InputError: topk=5: must lie between 1 and num_memories (4)
    """

    def __init__(self, field: str, value: object, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field}={_shown(value)}: {remedy}")

    def __reduce__(self):
        # Exceptions pickle by their message alone; this one must cross from worker processes whole.
        return type(self), (self.field, self.value, self.remedy)


class _Short(reprlib.Repr):
    """`repr` that ends, whatever the value: a list of millions, a hundred nested ones, a number of 5,000 digits."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 16
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 4000 else f"(a number of {x.bit_length()} bits)"


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, str | os.PathLike) else _Short().repr(value)
    text = " ".join(text.splitlines()) or "''"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


@contextmanager
def named_as(name: str, *fields: str) -> Iterator[None]:
    """Mistakes in one of ``fields`` become mistakes in ``name``, which is how the user gave it."""
    try:
        yield
    except InputError as error:
        if error.field not in fields:
            raise
        raise InputError(name, error.value, error.remedy) from error


def install(extra: str) -> str:
    """The remedy for a package that is missing: the command that installs one of this project's extras beside it.

    It installs from the source folder that this code runs from, as the project is on no package index.
    """
    source = Path(__file__).resolve().parents[1]
    if not (source / "pyproject.toml").is_file():
        return f"in the source folder of mom-jax run pip install -e '.[{extra}]'"
    return f"{shlex.quote(sys.executable or 'python')} -m pip install -e {shlex.quote(f'{source}[{extra}]')}"


def is_installed(module: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def need(module: str, extra: str, field: str, value: object, package: str = "") -> None:
    """Ends what cannot be done without an optional package, before it begins.

    Args:
        module: what is imported.
        extra: of this project, which brings the package.
        field, value: what asked for it.
        package: its name in words, if it is not that of the module.

    Raises:
        InputError: the package is not installed.
    """
    if not is_installed(module):
        raise InputError(field, value, f"needs {package or module}: {install(extra)}")


def in_a_line(error: BaseException) -> str:
    """What went wrong in a library, with the name of its exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class DivergedError(ArithmeticError):
    """A run whose last steps were all skipped.

    Args:
        step: the last one.
        skipped: how many, in a row.
        limit: the run's ``max_bad_steps``.
    """

    def __init__(self, step: int, skipped: int, limit: int):
        super().__init__(
            f"max_bad_steps={limit}: {skipped} steps in a row up to step {step} had a loss, gradient or update that "
            "was not finite or spiked; lower optimizer.learning_rate or look at the data, then run again to continue "
            "from the last checkpoint"
        )
        self.step, self.skipped, self.limit = step, skipped, limit
