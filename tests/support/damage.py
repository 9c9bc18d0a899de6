"""What happens to files: cut, flipped, overwritten, replaced; each kind of damage is a function of a path."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

Damage = Callable[[Path, random.Random], None]


def full_disk(*_: object, **__: object) -> NoReturn:
    """Stands in for what writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flip_the_middle(path: Path) -> None:
    """A bit in the middle is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    """Ends anywhere, perhaps at once."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path: Path, rng: random.Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero(path: Path, rng: random.Random) -> None:
    """As a file system leaves what it could not write: the size is right, the content is not."""
    path.write_bytes(bytes(path.stat().st_size))


def garble(path: Path, rng: random.Random) -> None:
    """Random bytes, more or fewer than before."""
    path.write_bytes(rng.randbytes(rng.randrange(1, 2 * path.stat().st_size + 2)))


def lengthen(path: Path, rng: random.Random) -> None:
    """Something is appended."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 40)))


def empty(path: Path, rng: random.Random) -> None:
    """A file without content."""
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random) -> None:
    """No file."""
    path.unlink()


def make_folder(path: Path, rng: random.Random) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path, rng: random.Random) -> None:
    """A link that leads nowhere, or to itself."""
    path.unlink()
    path.symlink_to(rng.choice([path.name, "nothing-there"]))


def other_encoding(path: Path, rng: random.Random) -> None:
    """UTF-16, as some editors save."""
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))


BYTES: list[Damage] = [cut, flip, zero, garble, lengthen, empty, remove, make_folder, link_to_nothing]
TEXT: list[Damage] = [cut, zero, garble, empty, other_encoding, make_folder]

WHOLES = ["{", "[]", "null", "3", '"text"', "[1]", "[" * 100_000, '{"a": 1, "a": 2}', "NaN", "\xef", "{}{}", "1" * 5000]
VALUES = [None, -1, 1.5, "", "abc", [], {}, [[1]], {"a": {}}, True, 10**30, "../../etc/passwd", "\0", [None]]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


def with_value(whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON value in which another stands at ``place``."""
    copy = json.loads(json.dumps(whole))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def at(whole: Any, place: tuple[Any, ...]) -> Any:
    """What stands at ``place``."""
    for key in place:
        whole = whole[key]
    return whole


def of_other_kind(whole: Any, place: tuple[Any, ...], rng: random.Random, none: bool = True) -> Any:
    """A value of another type than the one at ``place``; None too, unless that may stand there."""
    there = at(whole, place)
    alike = (int, float) if type(there) in (int, float) else type(there)
    others = [value for value in VALUES if type(value) is bool or not isinstance(value, alike)]
    others = [value for value in others if type(value) is not type(there) and (none or value is not None)]
    return rng.choice(others)


def put(path: Path, content: str | bytes) -> None:
    """Writes a file anew, whatever lies there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
