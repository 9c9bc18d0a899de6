"""Text out of parquet files and Arrow files, as the library `datasets` and others write them."""

import os
from collections.abc import Iterator
from pathlib import Path

from mom_jax.data.file_kinds import Kind
from mom_jax.data.json_documents import OnError
from mom_jax.data.opening import reason
from mom_jax.errors import InputError

_ROWS = 1024  # that are unpacked at once


def from_table(path: Path, kind: Kind, text_field: str, on_error: OnError) -> Iterator[str]:
    """The texts of one column, without the empty ones; see `mom_jax.data.documents.read_documents`."""
    import pyarrow  # slow to import

    try:
        for batch in (_parquet if kind == "parquet" else _arrow)(path, text_field):
            yield from _texts(batch.column(0).to_pylist(), path, on_error)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        name = "parquet" if kind == "parquet" else "Arrow"
        on_error(InputError("path", path, f"is not a whole {name} file ({reason(error)})"))


def _parquet(path: Path, text_field: str) -> Iterator:
    import pyarrow.parquet

    # A file object, as pyarrow opens no name that is not UTF-8.
    with open(path, "rb") as stream, pyarrow.parquet.ParquetFile(stream) as table:
        _check_column(table.schema_arrow, text_field, path)
        yield from table.iter_batches(batch_size=_ROWS, columns=[text_field])


def _arrow(path: Path, text_field: str) -> Iterator:
    import pyarrow

    with pyarrow.memory_map(os.fsencode(path)) as blob:
        if blob.read(6) == b"ARROW1":
            table = pyarrow.ipc.open_file(blob)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            blob.seek(0)
            batches = table = pyarrow.ipc.open_stream(blob)
        _check_column(table.schema, text_field, path)
        for batch in batches:
            column = batch.select([text_field])
            yield from (column.slice(start, _ROWS) for start in range(0, column.num_rows, _ROWS))


def _texts(values: list[str | bytes | None], path: Path, on_error: OnError) -> Iterator[str]:
    for value in filter(None, values):
        try:
            yield value if isinstance(value, str) else value.decode()
        except UnicodeDecodeError:
            on_error(InputError("path", path, "has a row that is not UTF-8; convert it, or leave it out"))


def _check_column(schema, text_field: str, path: Path) -> None:
    import pyarrow.types as types

    if text_field not in schema.names:
        raise InputError("text_field", text_field, f"{path} has the columns {', '.join(schema.names)}")
    kind = schema.field(text_field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if not any(fits(kind) for fits in (*is_text, *is_bytes)):
        raise InputError("text_field", text_field, f"is of type {kind} in {path}; text is needed")
