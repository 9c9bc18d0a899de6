"""Folders of safetensors files: read slice by slice, written tensor by tensor, never held whole."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16), "float16": np.dtype(np.float16)}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # the format's code: F32, BF16, F16, ...


class _Index(TypedDict):
    """The index of a model in several files."""

    weight_map: dict[str, str]  # a tensor's file


class StoredTensors:
    """The tensors of a folder, by name. Opening it reads the files' headers and nothing else.

    Raises:
        InputError: no weights there; an index that cannot be read, names missing files or leads out of the folder; a
            file that is truncated or not safetensors; a tensor that is stored twice.
    """

    def __init__(self, folder: Path):
        self.tensors: dict[str, Stored] = {}
        for path in _files(folder):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    if name in self.tensors:
                        remedy = f"is stored twice, in {self.tensors[name].file.name} and {path.name}; remove one"
                        raise InputError("tensors", name, remedy)
                    view = file.get_slice(name)
                    self.tensors[name] = Stored(path, tuple(view.get_shape()), view.get_dtype())

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor, in the dtype that it is stored in."""
        # Opened anew each time: pages of an open map count as memory of this process until it is closed.
        with _opened(self.tensors[name].file) as file:
            return file.get_slice(name)[index]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        remedy = f"is not a whole safetensors file ({error}); download or save it again"
        raise InputError("weights", str(path), remedy) from error


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise InputError("directory", str(folder), f"holds neither {SINGLE} nor {INDEX}")
    index = read_json(folder / INDEX, _Index, "get an undamaged copy of the model", "index")
    files = sorted(set(index["weight_map"].values()))
    for name in files:
        if os.path.isabs(name) or ".." in Path(name).parts or not name.isprintable():
            raise InputError("index", folder / INDEX, f"names a file outside of the folder: {name!r}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InputError("index", folder / INDEX, f"names missing files: {', '.join(missing)}")
    return [folder / name for name in files]


class Tensor(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]  # called when its turn comes, so that one tensor is in memory at a time


def write_tensors(
    folder: Path, tensors: Iterable[Tensor], dtype: str, max_shard_bytes: int, advance: Callable[[int], None]
) -> None:
    """Writes tensors in their order into ``model.safetensors``, or into several files with an index.

    Args:
        folder: an existing folder.
        tensors: what to write.
        dtype: float32, bfloat16 or float16.
        max_shard_bytes: files get no larger, except for a single tensor that is.
        advance: called with the number of bytes that were written.
    """
    shards = _shards(list(tensors), DTYPES[dtype].itemsize, max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, dtype, advance)
    if len(shards) > 1:
        total = sum(_size(tensor, DTYPES[dtype].itemsize) for shard in shards for tensor in shard)
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / INDEX, index, indent=2)


def _size(tensor: Tensor, itemsize: int) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * itemsize


def _shards(tensors: list[Tensor], itemsize: int, max_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _size(tensor, itemsize)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _write_file(path: Path, tensors: list[Tensor], dtype: str, advance: Callable[[int], None]) -> None:
    # The library's writer wants all tensors of a file at once; the format is a length, a header and the bytes.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _size(tensor, DTYPES[dtype].itemsize)
        header[tensor.name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = _stored(tensor, dtype)
            assert values.shape == tensor.shape, tensor.name
            file.write(values.reshape(-1).view(np.uint8).data)
            advance(values.nbytes)


def _stored(tensor: Tensor, dtype: str) -> np.ndarray:
    values = np.ascontiguousarray(tensor.values())
    if not np.isfinite(values).all():
        raise InputError("tensors", tensor.name, "holds NaN or infinite values; use an earlier checkpoint")
    with np.errstate(over="ignore"):
        stored = values.astype(DTYPES[dtype], copy=False)
    if not np.isfinite(stored).all():
        raise InputError("dtype", dtype, f"is too narrow for the values of {tensor.name}; use float32")
    return stored
