"""The folder that travels: exported programs, stored arrays, and an index that says what each program is for."""

import dataclasses
import json
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.export
import numpy as np

from tools.hardware.draws import Draw

INDEX, ARRAYS = "index.json", "arrays.npz"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A program, and what is asked of it.

    Attributes:
        name: of the program, and of its file.
        section: when it is run, see `tools.hardware.runner`; "" for what is run only because another needs it.
        inputs: its arrays, in order.
        outputs: their names, in order; what is compared is found by them.
        carried: numbers of the inputs that the first outputs take the place of in the next call; they are donated.
        against: name of the program that gives the right outputs, or ``stored``, then they lie in the folder as
            ``<name>/<output>``.
        tolerance: of ``||out - right|| / ||right||``, for each output.
        mask: a stored array that says which rows of the outputs count; "" for all.
        kernels: name of each kernel, in order, and the bytes of its operands.
        tokens: that one call reads, for rates; 0 where none is asked for.
    """

    name: str
    section: str
    inputs: tuple[Draw, ...]
    outputs: tuple[str, ...]
    carried: tuple[int, ...] = ()
    against: str = ""
    tolerance: float = 0.0
    mask: str = ""
    kernels: tuple[tuple[str, int], ...] = ()
    tokens: int = 0
    output_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Of all inputs and outputs, each once: the least that must move."""
        return sum(draw.bytes for draw in self.inputs) + self.output_bytes

    @property
    def file(self) -> str:
        """In the folder."""
        return f"{self.name.replace(' ', '-')}.xz"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder read."""

    path: Path
    made: Mapping[str, Any]  # versions and date
    entries: Mapping[str, Entry]
    arrays: Mapping[str, np.ndarray]

    def program(self, name: str) -> jax.export.Exported:
        """The exported program of that name."""
        return jax.export.deserialize(bytearray(lzma.decompress((self.path / self.entries[name].file).read_bytes())))


def write_program(path: Path, entry: Entry, exported: jax.export.Exported) -> None:
    """Writes one program into the folder."""
    (path / entry.file).write_bytes(lzma.compress(exported.serialize()))


def write_index(
    path: Path, made: Mapping[str, Any], entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes what is no program."""
    text = json.dumps({"made": made, "entries": [dataclasses.asdict(entry) for entry in entries]}, indent=1)
    (path / INDEX).write_text(text, encoding="utf-8")
    np.savez_compressed(path / ARRAYS, **arrays)  # type: ignore[arg-type]


def read_folder(path: Path) -> Folder:
    """Reads what `write_index` and `write_program` wrote."""
    index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    entries = {entry["name"]: _entry(entry) for entry in index["entries"]}
    with np.load(path / ARRAYS) as arrays:
        return Folder(path, index["made"], entries, dict(arrays))


def _entry(read: dict[str, Any]) -> Entry:
    inputs = tuple(Draw(**{**draw, "shape": tuple(draw["shape"])}) for draw in read["inputs"])
    kernels = tuple((name, moved) for name, moved in read["kernels"])
    return Entry(**{**read, "inputs": inputs, "outputs": tuple(read["outputs"]), "carried": tuple(read["carried"]),
                    "kernels": kernels})  # fmt: skip
