"""Many prompts from one file, and the file that their continuations go to; no JAX."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mom_jax.errors import InputError, named_as
from mom_jax.fields import checked, field_types
from mom_jax.files import json_line, parse_json, read_json_lines


class _Line(TypedDict):
    """An object of JSON lines; its other fields go into the record of its continuation."""

    prompt: str
    max_new_tokens: NotRequired[int]
    stop: NotRequired[str | list[str]]
    seed: NotRequired[int]


class Record(TypedDict):
    """A continuation, as it is written."""

    line: int
    sample: int
    prompt: str
    completion: str
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to continue, and how."""

    line: int  # of its file, from 1
    text: str
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int
    fields: dict[str, Any]  # that its line has besides


def read_prompts(text: str, place: str, common: Any) -> list[Prompt]:
    """The prompts of a file: a prompt in each line that is not empty, or JSON lines.

    They are JSON lines if the file is called so, or if its first line is an object.

    Args:
        text: the file's.
        place: its name, for messages.
        common: a checked configuration with what lines leave out: ``max_new_tokens``, ``stop`` and ``seed``.

    Raises:
        InputError: there is none, or a line is no object of this form; it is named.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError("prompts", place, "contains no prompt")
    are_objects, prompts = place.endswith((".json", ".jsonl")) or _is_object(lines[0][1]), []
    for number, line in lines:
        try:
            fields: Any = parse_json(line, _Line) if are_objects else {"prompt": line.removesuffix("\r")}  # type: ignore[arg-type]
            prompts.append(_prompt(fields, number, common))
        except InputError as error:
            raise InputError("prompts", f"{place}:{number}", f"{error.field}={error.value}: {error.remedy}") from error
        except ValueError as error:
            remedy = f"is no prompt ({error}); expected an object with the text in 'prompt'"
            raise InputError("prompts", f"{place}:{number}", remedy) from error
    return prompts


def _is_object(line: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _prompt(fields: dict[str, Any], number: int, common: Any) -> Prompt:
    if not fields["prompt"]:
        raise InputError("prompt", "''", "contains no text to continue")
    fields["prompt"].encode()  # half of a surrogate pair is no text
    stop = fields.get("stop", common.stop)
    given = {
        "max_new_tokens": fields.get("max_new_tokens", common.max_new_tokens),
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "seed": fields.get("seed", common.seed),
    }
    hints = field_types(type(common))
    options = {name: checked(name, value, hints[name]) for name, value in given.items()}
    rest = {name: value for name, value in fields.items() if name not in _Line.__annotations__}
    return Prompt(number, fields["prompt"], **options, fields=rest)


def continued(path: Path, prompts: Sequence[Prompt]) -> set[tuple[int, int]]:
    """The lines and samples whose continuations a file holds already, so that a command that was stopped goes on.

    Raises:
        InputError: it holds anything else.
    """
    if not path.is_file():
        return set()
    with named_as("out", "path"):
        records, complaints = read_json_lines(path, Record)
    remedy = "name a file that is not there, or one that this command has begun"
    if complaints:
        raise InputError("out", path, f"{complaints[0]}; {remedy}")
    texts = {prompt.line: prompt.text for prompt in prompts}
    for record in records:
        if texts.get(record["line"]) != record["prompt"]:
            raise InputError("out", path, f"holds continuations of other prompts (of line {record['line']}); {remedy}")
    return {(record["line"], record["sample"]) for record in records}


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes records behind those that a file holds; of a last line that was not written to its end nothing stays.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if path.is_file():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        stream = open(path, "ab")  # noqa: SIM115 (below)
    except OSError as error:
        raise InputError("out", path, f"cannot be written ({error.strerror})") from error
    with stream:

        def write(record: dict[str, Any]) -> None:
            stream.write(json_line(record).encode())
            stream.flush()

        yield write
