"""Files that this program writes and reads back: each appears whole or not at all, and what is read is checked first.

The form of JSON is given as a type: ``dict[str, int]``, ``list[Entry]``, ``str | None``, or a ``TypedDict`` or
dataclass for objects with known fields (further fields are let through).
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import socket
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mom_jax.errors import InputError

T = TypeVar("T")

_IN_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_IN_WORDS[type(None)] = "null"


_SEAL = "sha256"  # of the fields beside it


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file that is either whole or absent; text as UTF-8, with the bytes of names that are none as escapes."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as stream:
            stream.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            to_disk(stream)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Writes ``value`` as JSON, whole or not at all.

    Raises:
        InputError: it holds NaN or infinity, for which JSON has no word.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise InputError("path", path, "is not written: a number in it is NaN or infinite") from error
    write_atomically(path, text + "\n")


def write_sealed(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object with a sum of itself, so that `read_sealed` sees what other sums do not cover."""
    write_json(path, {**fields, _SEAL: _sum(fields)})


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON. What was measured as NaN or infinite becomes null: JSON has no word for it."""
    return json.dumps(finite(record), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A value of dictionaries, lists and numbers with None in the place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """What `finite` made of measured numbers, with NaN again."""
    if isinstance(value, dict):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def read_text(path: Path, remedy: str, field: str = "path") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: it cannot be read or is not UTF-8; ``remedy`` says what to do.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(field, path, f"cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(field, path, f"is damaged (byte {error.start} is not UTF-8); {remedy}") from error


def read_json(path: Path, form: type[T], remedy: str, field: str = "path") -> T:
    """The content of a JSON file, which has the given form.

    Args:
        path: the file.
        form: a type, as the module says.
        remedy: what to do where the file is missing or damaged, as in ``delete the folder and run again``.
        field: what the error names.

    Raises:
        InputError: the file cannot be read, is no JSON, or JSON of another form; names file, place and remedy.
    """
    try:
        return parse_json(read_text(path, remedy, field), form)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(field, path, f"is damaged ({error}); {remedy}") from error


def read_sealed(path: Path, form: type[T], remedy: str, field: str = "path") -> T:
    """What `write_sealed` wrote, or, without a sum, its earlier versions.

    Raises:
        InputError: as `read_json`, or the content is not the one that was written.
    """
    fields: Any = read_json(path, form, remedy, field)
    if fields.pop(_SEAL, None) not in (None, _sum(fields)):
        raise InputError(field, path, f"is damaged (its own SHA-256 differs); {remedy}")
    return fields


def _sum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def read_record(path: Path, cls: type[T], remedy: str, field: str = "path") -> T:
    """The dataclass ``cls`` with the fields of a sealed JSON object; fields that it does not know are left out.

    Raises:
        InputError: as `read_sealed`.
    """
    fields: Any = read_sealed(path, cls, remedy, field)
    return cls(**{known.name: fields[known.name] for known in dataclasses.fields(cls) if known.name in fields})  # type: ignore[arg-type]


def read_json_lines(path: Path, form: type[T]) -> tuple[list[T], list[str]]:
    """The records of a file with one JSON value per line, and a complaint for each line that is none.

    A last line without its end is one that was being written: it is left out without a complaint.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError("path", path, f"cannot be read ({error.strerror})") from error
    records, complaints = [], []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_json(line.decode(), form))
        except ValueError as error:
            complaints.append(f"{path}:{number} is damaged ({error})")
    return records, complaints


def readable_lines(path: Path, form: type[T], complain: Callable[[str], None]) -> list[T]:
    """The records of a file as `read_json_lines` has it; none where there is no such file.

    Args:
        path: the file.
        form: of a record.
        complain: gets a line for each one that is left out, or for the whole file where it cannot be read.
    """
    if not path.exists():
        return []
    try:
        records, complaints = read_json_lines(path, form)
    except InputError as error:
        records, complaints = [], [str(error)]
    for complaint in complaints:
        complain(f"{complaint}; it is left out")
    return records


def parse_json(text: str, form: type[T]) -> T:
    """The value that ``text`` spells, which has the given form.

    Raises:
        ValueError: what is wrong, in a few words.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    wrong = misfit(value, form)
    if wrong:
        raise ValueError(wrong)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice: nobody could say which of the values counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice!r} occurs twice")
    return members


def misfit(value: Any, form: Any, place: str = "") -> str | None:
    """What is wrong with ``value``, found at ``place``, where ``form`` is expected; None where nothing is."""
    if form is Any:
        return None
    if typing.is_typeddict(form) or dataclasses.is_dataclass(form):
        return misfit(value, dict, place) or _misfit_of_fields(value, form, place)
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if origin in (types.UnionType, typing.Union):
        misfits = [misfit(value, choice, place) for choice in inner]
        return None if None in misfits else misfits[0]
    if origin in (list, dict):
        items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        misfits = (misfit(item, inner[-1], f"{place}[{key!r}]") for key, item in items)
        return misfit(value, origin, place) or next(filter(None, misfits), None)
    kinds = (int, float) if form is float else (form,)
    if isinstance(value, kinds) and (form is bool or not isinstance(value, bool)):
        return None
    return f"{place or 'the whole'} is {_IN_WORDS[type(value)]}, not {_IN_WORDS[form]}"


def _misfit_of_fields(value: dict[str, Any], form: Any, place: str) -> str | None:
    for name, hint in typing.get_type_hints(form).items():
        if name in value:
            wrong = misfit(value[name], hint, f"{place}[{name!r}]")
        else:
            wrong = f"{place or 'the object'} has no {name!r}" if name in _required(form) else None
        if wrong:
            return wrong
    return None


def _required(form: Any) -> set[str]:
    if typing.is_typeddict(form):
        return set(form.__required_keys__)
    missing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(form) if f.default is missing and f.default_factory is missing}


def temporary_path(path: Path) -> Path:
    """Where a file is written before it gets its name ``path``.

    It names machine and process, for several may write the same file: the last one wins.
    """
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of this machine's processes that no longer run (they were killed)."""
    ours = re.compile(rf"\..*\.{re.escape(_host())}\.(\d+)\.tmp")
    for path in folder.iterdir():
        match = ours.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def to_disk(stream: typing.IO[bytes]) -> None:
    """Returns when what was written to ``stream`` is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _host() -> str:
    return socket.gethostname().replace("/", "-")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
