"""The terminal: text that prints in any encoding, and where tables and progress go.

What users bring (names, paths, texts) is printed as it is: nothing here reads Rich's markup.
"""

import io
import logging
import os
import select
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

if typing.TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_log = logging.getLogger(__name__)
_NO_END = 10_000  # columns of what is no terminal: a table there is as wide as it needs to be


def prepare_streams() -> None:
    """Readies stdout and stderr, once, before a command prints: no sign is an error.

    What the terminal's encoding lacks is written as an escape such as ``\\u4e2d``, bytes of a name that are not UTF-8
    as ``\\udce9``. A stream that the caller has closed takes everything and shows nothing. ``NO_COLOR`` holds for
    help texts too, and bars of libraries are for terminals.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (to the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_live(sys.stderr):  # bars of libraries would be drawn again and again
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    if os.environ.get("NO_COLOR"):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"


def is_live(stream: typing.Any) -> bool:
    """Whether a line of ``stream`` can be drawn again: a terminal, and not one that a notebook only imitates."""
    notebook = "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown") and not notebook


def console(stream: typing.Any = None, quiet: bool = False, *, outlives_reader: bool = False) -> "Console":
    """Where to print, by default stdout: without markup, and on a terminal alone with lines that are drawn again.

    Args:
        stream: stdout unless given.
        quiet: print nothing.
        outlives_reader: go on where the reader of the output leaves or its disk is full, and the work matters more
            than what is printed of it; else that raises OSError.
    """
    from rich.console import Console  # not needed for help and mistakes

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # what the caller is handling; Rich would end the program with status 1

        def print(self, *args: typing.Any, **options: typing.Any) -> None:
            try:
                super().print(*args, **options)
            except OSError as error:
                if not outlives_reader:
                    raise
                let_go(self.file)
                left = isinstance(error, BrokenPipeError)
                why = "nobody reads the output any more" if left else f"the output cannot be written ({error.strerror})"
                _log.warning("%s; going on without it", why)

    stream = sys.stdout if stream is None else stream
    live = is_live(stream)
    return Plain(
        file=stream,
        quiet=quiet,
        force_terminal=live,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=None if live else _NO_END,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def counting(what: str, total: int, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Tells on stderr how many of ``total`` things are done: a bar on a terminal, a line for every tenth elsewhere.

    Yields:
        What to call after each of them, or after ``count`` of them, with a note such as a rate or without one.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out, done = console(sys.stderr, quiet, outlives_reader=True), 0
    note_column = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note_column)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(note: str = "", count: int = 1) -> None:
            nonlocal done
            done += count
            bar.update(task, completed=done, note=note)
            if not out.is_terminal and done * 10 // total > (done - count) * 10 // total:
                out.print(f"{what}: {done:,} of {total:,}{note and f', {note}'}")

        yield advance


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Tells on stderr what is being done: each line as it begins, on a terminal with the seconds since beside it.

    Yields:
        What to call with a line.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    out = console(sys.stderr, outlives_reader=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal) as shown:

        def report(line: str) -> None:
            for task in shown.task_ids:
                shown.stop_task(task)
            shown.add_task(line, total=None)
            if not out.is_terminal:
                out.print(line)

        yield report


def print_table(table: "Table", out: "Console") -> None:
    """Prints a table so that it fits the terminal and no word or number is cut.

    Where it is narrow, cells are broken between words; where not even that suffices, each row is a list of its cells.
    """
    from rich.cells import cell_len
    from rich.segment import Segments

    texts = [[str(text) for text in (column.header, *column.cells)] for column in table.columns]
    least = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in texts]
    whole = [max((cell_len(line) for text in column for line in text.splitlines()), default=0) for column in texts]
    frame = 3 * len(texts) + 1
    if frame + sum(least) > out.width:
        _print_rows(table.title, texts, out)
        return
    room = out.width - frame - sum(least)
    share = min(max(room / max(sum(whole) - sum(least), 1), 0), 1)
    for column, short, long in zip(table.columns, least, whole, strict=True):
        column.width = short + int(share * (long - short))
    out.print(Segments(out.render(table)), end="", crop=False)


def _print_rows(title: object, columns: list[list[str]], out: "Console") -> None:
    """The rows of a table below each other, a line for each cell; the first cell is what a row is about."""
    headings, *rows = zip(*columns, strict=True)
    if title:
        out.print(title, soft_wrap=False)
    for first, *cells in rows:
        out.print(first, soft_wrap=False)
        for heading, cell in zip(headings[1:], cells, strict=True):
            out.print(f"  {heading}: {cell}", soft_wrap=False)


def reader_left(stream: typing.Any) -> bool:
    """Whether ``stream`` is a pipe that nobody reads any more (head, a pager that was quit)."""
    with suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def let_go(stream: typing.Any) -> None:
    """Sends what is still buffered, and all that comes, to nowhere, so that the interpreter can end in peace."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def printable(text: str) -> str:
    """``text`` in one line, with control characters and halves of characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
