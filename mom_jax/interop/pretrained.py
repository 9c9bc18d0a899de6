"""Models from and to folders of the PyTorch library: ``config.json`` and safetensors files."""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mom_jax import terminal
from mom_jax.errors import InputError
from mom_jax.interop.folders import check_empty, in_place_of
from mom_jax.interop.keys import Piece, model_tensor, pieces, without_effect
from mom_jax.interop.published import CONFIG_FILE, read_config, to_published, write_config
from mom_jax.interop.tensors import DTYPES, StoredTensors, Tensor, write_tensors
from mom_jax.layers.rules.published import Index
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.structure import dotted, model_parts, param_shardings
from mom_jax.paths import local_path

MAX_SHARD_BYTES = 5 * 10**9
_ALIGNMENT = 64  # XLA's CPU client takes over a host buffer without a copy if it is aligned so
_PROGRESS_BYTES = 2**29  # models below this load before a bar could be read
_NAMED = 20  # tensors that do not fit, of all in a model of another kind
_READABLE = ("F32", "BF16", "F16")
_OUTPUT = "lm_head.weight"


def load_pretrained(directory: str | Path) -> MoMForCausalLM:
    """The model in a folder that the PyTorch library (or `save_pretrained`) wrote.

    Reads ``config.json`` of a model type in `mom_jax.interop.model_types`, and
    ``model.safetensors`` or the files of ``model.safetensors.index.json``, in float32, bfloat16
    or float16; parameters become float32. Tensors are read slice by slice from memory maps: the
    host holds at most one of our parameters besides the model. Under a mesh that is set with
    `jax.set_mesh` each device gets its own part of each parameter, and only parts that live in
    this process are read.

    Raises:
        InputError: no or another model's ``config.json``; no, truncated or incomplete weights;
            missing, unexpected or misshapen tensors (all are named in one message); values that
            are not finite; a parameter that does not divide over the mesh.
    """
    folder = local_path(directory, "directory")
    config, layout = read_config(folder)
    stored = StoredTensors(folder)
    parts = model_parts(config)
    abstract, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(parts.abstract))
    plan = {dotted(path): pieces(config, layout, dotted(path), leaf.shape, stored.tensors) for path, leaf in abstract}
    embedding = model_tensor(config, layout, "embeddings")
    _check(config, {dotted(path): leaf.shape for path, leaf in abstract}, plan, stored, embedding)
    mesh = jax.sharding.get_mesh()
    shardings = [None] * len(abstract) if mesh.empty else jax.tree.leaves(param_shardings(parts.abstract, mesh))
    reader = _Reader(stored)
    leaves = []
    with _progress(f"loading {folder.name}", sum(4 * math.prod(leaf.shape) for _, leaf in abstract)) as advance:
        for (path, leaf), sharding in zip(abstract, shardings, strict=True):
            leaves.append(reader.parameter(plan[dotted(path)], leaf.shape, sharding))
            advance(4 * math.prod(leaf.shape))
    if reader.not_finite:
        remedy = "hold NaN or infinite values; get an undamaged copy of the weights"
        raise InputError("tensors", ", ".join(sorted(reader.not_finite)), remedy)
    return parts.merge(jax.tree.unflatten(tree, leaves))


class _Reader:
    """Fills parameters of ours from stored tensors, and remembers tensors with values that are not finite."""

    def __init__(self, stored: StoredTensors):
        self.stored = stored
        self.not_finite: set[str] = set()

    def parameter(self, plan: list[Piece], shape: tuple[int, ...], sharding: Sharding | None) -> jax.Array:
        part = functools.partial(self._part, plan, shape)
        if sharding is None:
            return jax.block_until_ready(jax.device_put(part(None)))
        return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))

    def _part(self, plan: list[Piece], shape: tuple[int, ...], index: Index | None) -> np.ndarray:
        lead = len(plan[0].where)  # layer and memory axes are never split
        index = index or ()
        index = (*index, *[slice(None)] * (len(shape) - len(index)))[lead:]
        size = tuple(len(range(*cut.indices(n))) for cut, n in zip(index, shape[lead:], strict=True))
        values = _aligned((*shape[:lead], *size))
        for where, name, form in plan:
            read = form.ours(self.stored.read(name, form.stored_index(index, shape[lead:])), index, shape[lead:])
            values[where] = read
            if not np.isfinite(values[where]).all():
                self.not_finite.add(name)
        return values


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array whose memory a device on the host can take over as it is."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def _check(
    config: MoMConfig,
    shapes: dict[str, tuple[int, ...]],
    plan: dict[str, list[Piece]],
    stored: StoredTensors,
    embedding: str,
) -> None:
    """Compares what the model needs with what is stored, by names, shapes and dtypes."""
    needed = {
        piece.name: piece.form.stored_shape(shapes[ours][len(piece.where) :])
        for ours, parameter_pieces in plan.items()
        for piece in parameter_pieces
    }
    wrong = []
    for name, shape in needed.items():
        tensor = stored.tensors.get(name)
        if tensor is None:
            wrong.append(f"{name} {list(shape)} is missing")
        elif tensor.shape != shape:
            rows = " (vocab_size)" if name in (embedding, _OUTPUT) and tensor.shape[1:] == shape[1:] else ""
            wrong.append(f"{name} has shape {list(tensor.shape)} instead of {list(shape)}{rows}")
        elif tensor.dtype not in _READABLE:
            wrong.append(f"{name} is stored as {tensor.dtype} instead of {', '.join(_READABLE)}")
    for name, tensor in stored.tensors.items():
        if name not in needed and not without_effect(config, name):
            wrong.append(f"{name} {list(tensor.shape)} is unexpected")
    if wrong:
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        remedy = f"do not fit config.json: {'; '.join(wrong[:_NAMED] + more)}"
        raise InputError("tensors", f"{len(wrong)} of {len(stored.tensors)}", remedy)
    if config.tie_word_embeddings and _OUTPUT in stored.tensors and not _equal(stored, _OUTPUT, embedding):
        remedy = f"but {_OUTPUT} differs from {embedding}; set it to false in config.json to keep both"
        raise InputError("tie_word_embeddings", True, remedy)


def _equal(stored: StoredTensors, one: str, other: str) -> bool:
    if stored.tensors[one].shape != stored.tensors[other].shape:
        return False
    rows = stored.tensors[one].shape[0]
    cuts = [(slice(start, min(start + 1024, rows)), slice(None)) for start in range(0, rows, 1024)]
    return all(np.array_equal(stored.read(one, cut), stored.read(other, cut)) for cut in cuts)


def save_pretrained(
    model: MoMForCausalLM,
    directory: str | Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model as a folder that the PyTorch library (and `load_pretrained`) loads.

    Tensors are written one by one into a temporary folder beside ``directory``, which is then
    renamed: an error leaves nothing half written. With several processes all must call it;
    the first one writes.

    Args:
        model: what to save; its parameters may be split over devices.
        directory: the folder to create; it may exist if it is empty.
        dtype: float32, bfloat16 or float16, in which parameters are stored.
        max_shard_bytes: a larger model is split into several files with an index.

    Raises:
        InputError: the folder is not empty, an unknown dtype, or parameters that are not finite or too large for it.
    """
    folder = local_path(directory, "directory").absolute()
    if dtype not in DTYPES:
        raise InputError("dtype", dtype, f"choose one of {', '.join(DTYPES)}")
    if max_shard_bytes < 1:
        raise InputError("max_shard_bytes", max_shard_bytes, "must be at least 1")
    check_empty(folder)
    tensors = list(_tensors(model))
    if jax.process_index() != 0:
        for tensor in tensors:
            tensor.values()  # takes part in gathering what is split over processes
        return
    with in_place_of(folder) as temporary:
        write_config(model.config, temporary / CONFIG_FILE, dtype)
        total = sum(DTYPES[dtype].itemsize * math.prod(tensor.shape) for tensor in tensors)
        with _progress(f"saving {folder.name}", total) as advance:
            write_tensors(temporary, tensors, dtype, max_shard_bytes, advance)


def _tensors(model: MoMForCausalLM) -> Iterator[Tensor]:
    """Everything to be stored, in the order of our parameters; values are fetched when asked for."""
    layout, *_ = to_published(model.config.to_dict())
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]
    by_name: dict[str, list[tuple[Piece, jax.Array]]] = {}
    for path, leaf in leaves:
        for piece in pieces(model.config, layout, dotted(path), leaf.shape):
            by_name.setdefault(piece.name, []).append((piece, leaf))
    for name, parts in by_name.items():
        (where, _, form), leaf = parts[0]
        yield Tensor(name, form.stored_shape(leaf.shape[len(where) :]), functools.partial(_stored, parts))


def _stored(parts: list[tuple[Piece, jax.Array]]) -> np.ndarray:
    """One of their tensors from the parameters of ours that lie in it, on top of each other."""
    parts = sorted(parts, key=lambda part: part[0].form.part or (0, 0))
    rows = [form.stored(_on_host(leaf, where)) for (where, _, form), leaf in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _on_host(leaf: jax.Array, where: tuple[int, ...]) -> np.ndarray:
    """One layer's or memory's slice of a parameter, gathered from all devices and processes."""
    part = leaf[where] if where else leaf
    if not isinstance(part, jax.Array) or part.is_fully_addressable:
        return np.asarray(part)
    return multihost_utils.process_allgather(part, tiled=True)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal that counts bytes of parameters; none for small models."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = terminal.console(sys.stderr)
    hidden = total < _PROGRESS_BYTES or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
