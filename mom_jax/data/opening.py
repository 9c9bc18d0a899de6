"""Bytes of files: unpacked on the fly, or a range of whole lines."""

import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO

from mom_jax.data.file_kinds import compression, kind
from mom_jax.errors import need

# What the libraries raise on files that are not what their suffix says, or end too early.
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)


def check_packages(path: Path, field: str = "path") -> None:
    """Raises `InputError` where what reads files of this name is not installed."""
    if compression(path.name) not in (None, "xz") or kind(path.name) in ("parquet", "arrow"):
        need("pyarrow", "text", field, path)


def open_unpacked(path: Path) -> BinaryIO:
    """A stream of the file's content, unpacked if its suffix says that it is compressed.

    Raises:
        OSError: it cannot be opened. Reading raises one of `UNREADABLE` where the file is damaged.
    """
    check_packages(path)
    packing = compression(path.name)
    if packing == "xz":
        return io.BufferedReader(lzma.open(path, "rb"), 2**20)  # type: ignore[arg-type]
    stream = path.open("rb")
    if packing is None:
        return stream
    import pyarrow  # slow to import

    # A file object, as pyarrow opens no name that is not UTF-8.
    return io.BufferedReader(pyarrow.input_stream(stream, compression=packing), 2**20)  # type: ignore[arg-type]


def read_lines(path: Path, start: int, stop: int) -> bytes:
    """The whole lines that begin at byte ``start`` or later and before ``stop``."""
    with open(path, "rb") as stream:
        if start:
            stream.seek(start - 1)
            start += len(stream.readline(stop - start + 1)) - 1  # no farther than needed: a line may be very long
        if start >= stop:
            return b""
        blob = stream.read(stop - start)
        return blob if blob.endswith(b"\n") else blob + stream.readline()


def line_number(path: Path, offset: int) -> int:
    """Number, from 1, of the first line that begins at byte ``offset`` or later. Reads what is before it."""
    number, last = 1, b"\n"
    with open(path, "rb") as stream:
        while offset > 0 and (blob := stream.read(min(offset, 2**20))):
            number += blob.count(b"\n")
            offset -= len(blob)
            last = blob[-1:]
    return number + (last != b"\n")


def reason(error: BaseException) -> str:
    """Why a file cannot be read, without its name."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def one_line(error: BaseException) -> str:
    """What an exception of a library says, short enough for a remedy."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
