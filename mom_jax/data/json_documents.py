"""Text out of JSON: one object per line, an array of objects, or objects one after the other."""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mom_jax.data.file_kinds import compression, kind, suffix
from mom_jax.errors import InputError

OnError = Callable[[InputError], None]
_CHUNK = 2**20
_GAP = re.compile(r"[ \t\r\n,]*")
_END = object()
_BREAKS = (ValueError, RecursionError)  # what json raises on bad and on deeply nested input


def stop(error: InputError) -> None:
    """What to do about a broken document or file, unless said otherwise."""
    raise error


def from_json(stream: BinaryIO, text_field: str, path: Path, on_error: OnError) -> Iterator[str]:
    """The documents of an open file of any of the three forms; see `mom_jax.data.documents.read_documents`."""
    chunks = iter(lambda: stream.read(_CHUNK), b"")
    head = next(chunks, b"")
    body = _body(head)
    if body.startswith(b"["):
        yield from _from_values(itertools.chain([body[1:]], chunks), "]", text_field, path, on_error)
    elif _begins_with_line(body, path):
        yield from from_lines(_lines(head, stream), lambda number: number + 1, text_field, path, on_error)
    else:
        yield from _from_values(itertools.chain([head], chunks), "", text_field, path, on_error)


def is_json_lines(path: Path) -> bool:
    """Whether a file holds JSON line by line, uncompressed, so that it can be cut between any two lines."""
    if kind(path.name) != "json" or compression(path.name):
        return False
    with open(path, "rb") as stream:
        body = _body(stream.read(_CHUNK))
    return not body.startswith(b"[") and _begins_with_line(body, path)


def _body(head: bytes) -> bytes:
    return head.removeprefix(codecs.BOM_UTF8).lstrip()


def _begins_with_line(body: bytes, path: Path) -> bool:
    # Only .json may be written over several lines.
    return suffix(path.name) != ".json" or _is_json(body.partition(b"\n")[0])


def from_lines(
    lines: Iterable[bytes], number_of: Callable[[int], int], text_field: str, path: Path, on_error: OnError
) -> Iterator[str]:
    """The documents of lines that hold one object each; ``number_of`` gives the i-th line's number in the file."""
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            text = _text_of_line(line, text_field)
        except InputError as error:
            on_error(_placed(error, f"{path}:{number_of(index)}"))
            continue
        if text:
            yield text


def is_record(path: Path, stream: BinaryIO, text_field: str) -> bool:
    """Whether the first thing in an open JSON file is an object with text in ``text_field``."""
    try:
        return next(from_json(stream, text_field, path, stop), None) is not None
    except InputError:
        return False


def _lines(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The lines of ``head`` and of what follows it, which is read when they have been taken: it may be damaged."""
    *whole, last = head.split(b"\n")
    yield from whole
    yield (last + stream.readline()).removesuffix(b"\n")
    yield from (line.removesuffix(b"\n") for line in stream)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except _BREAKS:
        return False
    return True


def _text_of_line(line: bytes, text_field: str) -> str | None:
    try:
        row = json.loads(line)
    except _BREAKS as error:
        raise InputError("path", "", f"is not a JSON object on one line ({error}); is the file truncated?") from error
    return _text_of_row(row, text_field)


def _text_of_row(row: Any, text_field: str) -> str | None:
    if not isinstance(row, dict):
        raise InputError("path", "", f"is JSON, but not an object with the field {text_field!r}")
    if text_field not in row:
        fields = ", ".join(row) or "no fields"
        raise InputError("text_field", text_field, f"missing at {{}}, which has {fields}")
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise InputError("text_field", text_field, "is not a string at {}")
    if text and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("path", "", "holds half of a surrogate pair, which is not text") from error
    return text


def _placed(error: InputError, where: str) -> InputError:
    if error.field == "path":
        return InputError("path", where, error.remedy)
    return InputError(error.field, error.value, error.remedy.replace("{}", where, 1))


def _from_values(chunks: Iterator[bytes], end: str, text_field: str, path: Path, on_error: OnError) -> Iterator[str]:
    values = _values(chunks, end)
    for number in itertools.count(1):
        try:
            row = next(values, _END)
            text = None if row is _END else _text_of_row(row, text_field)
        except InputError as error:
            on_error(_placed(error, f"{path}, record {number}"))
            continue
        except _BREAKS as error:  # nothing behind it can be found
            on_error(InputError("path", path, f"record {number} is not JSON ({error}); is the file truncated?"))
            return
        if row is _END:
            return
        if text:
            yield text


def _values(chunks: Iterator[bytes], end: str) -> Iterator[Any]:
    """JSON values one after the other up to ``end``; empty: that of the file. Memory holds one of them and a chunk."""
    decoder, to_text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, at = "", 0
    while True:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]
        if end and text.startswith(end, at):
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:  # perhaps cut off: once more, with at least twice the text
            more = _take(chunks, len(text) - at)
            if not more and at == len(text) and not end:
                return
            if not more:
                raise
            text, at = text[at:] + to_text.decode(more), 0
            continue
        yield value


def _take(chunks: Iterator[bytes], size: int) -> bytes:
    taken = []
    for chunk in chunks:
        taken.append(chunk)
        size -= len(chunk)
        if size <= 0:
            break
    return b"".join(taken)
