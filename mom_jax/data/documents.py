"""Documents of one file: a text file is one document, jsonl and parquet hold one per line or row."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from mom_jax.errors import InputError

_JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_documents(path: Path, text_field: str) -> Iterator[str]:
    """Yields the documents of ``path`` in order, without the empty ones.

    The suffix tells the format: ``.parquet``; ``.jsonl``, ``.ndjson`` or ``.json`` (one object per line);
    anything else is text. ``.gz``, ``.zst`` and ``.bz2`` behind it are unpacked on the fly. Text files are
    read whole, the others piece by piece.

    Raises:
        InputError: the file cannot be read, is binary, truncated or malformed; names file and line.
    """
    suffixes = [s for s in path.suffixes if s not in (".gz", ".zst", ".bz2")]
    kind = suffixes[-1].lower() if suffixes else ""
    if kind == ".parquet":
        yield from _parquet(path, text_field)
        return
    try:
        if kind in _JSON_LINES:
            yield from _json_lines(path, text_field)
        else:
            yield from _text(path)
    except OSError as error:
        raise InputError("path", path, f"cannot be read ({_reason(error)})") from error


def _open(path: Path) -> io.BufferedReader:
    import pyarrow  # slow to import

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="detect"), 2**20)


def _text(path: Path) -> Iterator[str]:
    with _open(path) as stream:
        blob = stream.read()
    if b"\0" in blob:
        line = blob.count(b"\n", 0, blob.index(b"\0")) + 1
        raise InputError("path", f"{path}:{line}", "holds a NUL byte: a binary file is not training text")
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise InputError("path", f"{path}:{line}", "is not UTF-8; convert the file, or leave it out") from error
    if text:
        yield text


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            text = _text_of_line(line, f"{path}:{number}", text_field)
            if text:
                yield text


def _text_of_line(line: bytes, where: str, text_field: str) -> str | None:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(
            "path", where, f"is not a JSON object on one line ({error}); is the file truncated?"
        ) from error
    if not isinstance(row, dict):
        raise InputError("path", where, f"is JSON, but not an object with the field {text_field!r}")
    if text_field not in row:
        raise InputError("text_field", text_field, f"missing at {where}, which has {', '.join(row) or 'no fields'}")
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise InputError("text_field", text_field, f"is not a string at {where}")
    if text and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("path", where, "holds half of a surrogate pair, which is no text") from error
    return text


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(str(path)) as table:
            _check_column(table.schema_arrow, text_field, path)
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError("path", path, f"is not a whole parquet file ({_reason(error)})") from error


def _check_column(schema, text_field: str, path: Path) -> None:
    import pyarrow

    if text_field not in schema.names:
        raise InputError("text_field", text_field, f"{path} has the columns {', '.join(schema.names)}")
    kind = schema.field(text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise InputError("text_field", text_field, f"is of type {kind} in {path}; text is needed")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
