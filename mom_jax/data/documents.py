"""Documents of one file: a text file is one document; jsonl, JSON, parquet and Arrow hold one per record."""

from collections.abc import Iterator
from pathlib import Path

from mom_jax.data.file_kinds import compression, kind, suffix
from mom_jax.data.json_documents import OnError, from_json, from_lines, stop
from mom_jax.data.opening import UNREADABLE, line_number, open_unpacked, read_lines, reason
from mom_jax.data.passages import Passage
from mom_jax.data.table_documents import from_table
from mom_jax.errors import InputError


class Skips:
    """Leaves out what is broken, and counts it."""

    def __init__(self):
        self.count = 0
        self.example: InputError | None = None  # the first

    def __call__(self, error: InputError) -> None:
        """Counts ``error``."""
        self.count += 1
        self.example = self.example or error


def error_handler(on_error: str) -> OnError:
    """What `DataConfig.on_error` asks for: `stop` or a new `Skips`."""
    return Skips() if on_error == "skip" else stop


def read_documents(
    path: Path,
    text_field: str,
    on_error: OnError,
    span: tuple[int, int] | None = None,
    passage: Passage | None = None,
) -> Iterator[str]:
    """Yields the documents of ``path`` in order, without the empty ones.

    The suffix tells the format (see `file_kinds`): ``.parquet``; ``.arrow`` and ``.feather``; ``.jsonl``, ``.ndjson``
    or ``.json`` (one object per line, an array of objects, or objects one after the other); anything else is text.
    Compressed files are unpacked on the fly. Text files are read whole, the others piece by piece.

    Args:
        path: the file.
        text_field: the field or column that holds the text.
        on_error: gets what is wrong with a document, or with the rest of the file; reading then goes on behind it.
        span: only the lines that begin at these bytes, from the first up to the second; for JSON lines.
        passage: only this side; for text files.

    Raises:
        InputError: the file cannot be read, is binary, truncated or malformed; names file and line.
    """
    try:
        yield from _documents(path, text_field, on_error, span, passage)
    except UNREADABLE as error:
        on_error(InputError("path", path, f"cannot be read ({reason(error)})"))
    except InputError as error:
        on_error(error)


def _documents(
    path: Path, text_field: str, on_error: OnError, span: tuple[int, int] | None, passage: Passage | None
) -> Iterator[str]:
    if span is not None:
        lines = read_lines(path, *span).split(b"\n")
        yield from from_lines(lines, lambda number: line_number(path, span[0]) + number, text_field, path, on_error)
    elif kind(path.name) == "text":
        yield from _text(path, passage)
    elif kind(path.name) == "json":
        with open_unpacked(path) as stream:
            yield from from_json(stream, text_field, path, on_error)
    elif compression(path.name):
        raise InputError("path", path, f"{suffix(path.name)} files are not read from inside an archive; unpack it")
    else:
        yield from from_table(path, kind(path.name), text_field, on_error)


def _text(path: Path, passage: Passage | None) -> Iterator[str]:
    with open_unpacked(path) as stream:
        blob = stream.read()
    if blob.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("path", path, "is UTF-16; convert it to UTF-8, or leave it out")
    if b"\0" in blob:
        line = blob.count(b"\n", 0, blob.index(b"\0")) + 1
        raise InputError("path", f"{path}:{line}", "holds a NUL byte: a binary file is not training text; leave it out")
    try:
        blob.decode()
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise InputError("path", f"{path}:{line}", "is not UTF-8; convert the file, or leave it out") from error
    text = (passage.of(blob) if passage else blob).decode("utf-8-sig")
    if text:
        yield text
