"""Traced programs are kept from one command to the next.

JAX keeps compiled programs, but finds one by what tracing gives, so every start would trace anew. Here what tracing
gives, as `jax.export` writes it, is found by all that it follows from: the code of this project, the versions of the
libraries, JAX's settings, the device, and a description of what the program is called with. What cannot be described
by its fields, or by names of things in those packages, is traced in every process.

Only the command does this, in a process of its own that uses a single device, no GPU, and no code of a user's own.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from mom_jax import importing
from mom_jax.files import temporary_path

MAX_BYTES = 2**28  # then the programs that were not used for longest go
_OWN = ("mom_jax", "pallas_kernels")  # known by what is in their files
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy")  # known by their versions
_DESCRIBED = {*_OWN, *_LIBRARIES, *sys.stdlib_module_names}
_DIGEST = hashlib.sha256().digest_size
_programs: dict[Path, Callable[..., Any]] = {}  # of this process


def kept(
    function: Callable[..., Any], about: Any, arguments: tuple[Any, ...], donate: tuple[int, ...] = (), **places: Any
) -> Callable[..., Any]:
    """``function``, or a program of the same arguments and results that an earlier process may have traced.

    Args:
        function: a jitted one, or a `functools.partial` of one.
        about: its name, and what it depends on besides its arguments.
        arguments: what it is about to be called with, or their shapes and places. With others it is traced.
        donate: the numbers of those that it donates.
        places: ``in_shardings`` and ``out_shardings``, as of `jax.jit`.
    """
    folder = _folder()
    if folder is None or importing.foreign or not all(map(_on_one_device, jax.tree.leaves((arguments, places)))):
        return function
    try:
        described = _description((about, _form(arguments), donate))
    except (pickle.PicklingError, TypeError, ValueError, AttributeError):  # of something that has no name
        return function
    path = folder / hashlib.sha256(described + _surroundings()).hexdigest()
    if path not in _programs:
        _programs[path] = _program(path, function, arguments, donate, places)
    return _programs[path]


def _folder() -> Path | None:
    """Where programs are kept; None where they are not."""
    place = jax.config.jax_compilation_cache_dir
    if not importing.in_command or not place or "://" in place or not jax.config.jax_enable_compilation_cache:
        return None
    # `jax.export` refuses Triton's kernels, which it does not know to stay the same.
    return Path(place) / "traced" if jax.process_count() == 1 and jax.default_backend() != "gpu" else None


def _on_one_device(leaf: Any) -> bool:
    place = getattr(leaf, "sharding", leaf)
    return len(getattr(place, "device_set", ())) <= 1


def _form(arguments: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, [(leaf.shape, str(leaf.dtype), leaf.weak_type) for leaf in map(jax.typeof, leaves)]


class _Describer(pickle.Pickler):
    """Writes functions and classes as their names; nothing reads it."""

    def reducer_override(self, thing: Any) -> Any:
        module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(name, str) or module == "builtins":
            return NotImplemented
        if module.partition(".")[0] not in _DESCRIBED or "<" in name:  # of a user's own, or with variables of its own
            raise pickle.PicklingError(f"{module}.{name}")
        return str, (f"{module}.{name}",)


def _description(thing: Any) -> bytes:
    stream = io.BytesIO()
    pickler = _Describer(stream, protocol=5)
    pickler.fast = True  # equal things are written alike, whether they are one object or several
    pickler.dump(thing)
    return stream.getvalue()


def _surroundings() -> bytes:
    """All that a program depends on besides what it is called with."""
    device = jax.devices()[0]
    versions = [(name, getattr(importlib.import_module(name), "__version__", None)) for name in _LIBRARIES]
    settings = sorted(jax.config.values.items())
    mesh = jax.sharding.get_abstract_mesh()
    what = (sys.version, versions, settings, mesh, device.platform, device.device_kind, device.client.platform_version)
    return repr(what).encode() + _own_code()


@functools.cache
def _own_code() -> bytes:
    digest = hashlib.sha256()
    for root in sorted(str(Path(importlib.import_module(package).__file__ or "").parent) for package in _OWN):
        for folder, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(name for name in files if name.endswith(".py")):
                content = Path(folder, file).read_bytes()
                digest.update(f"{folder}/{file} {len(content)}\n".encode() + content)
    return digest.digest()


def _program(path: Path, function: Any, arguments: Any, donate: tuple[int, ...], places: Any) -> Callable[..., Any]:
    entry = _read(path)
    if entry is None:
        try:
            entry = _traced(function, arguments)
            content = pickle.dumps((bytes(entry[0].serialize()), entry[1]))
        except Exception:  # noqa: BLE001 (what cannot be exported is called as it is, and then says what is wrong with it)
            return function
        _write(path, content)
    traced, tree = _without_lapack(entry[0]), entry[1]
    form = _form(arguments)

    def program(*arguments: Any) -> Any:
        if _form(arguments) != form:
            return function(*arguments)
        return jax.tree.unflatten(tree, traced.call(*jax.tree.leaves(arguments)))

    return jax.jit(program, donate_argnums=donate, **places)


def _without_lapack(program: export.Exported) -> export.Exported:
    """The program, whose call on a CPU imports SciPy for LAPACK only if it uses that, and not always."""
    if program.platforms != ("cpu",) or b"lapack" in program.mlir_module_serialized:
        return program
    # The check is ours: an entry is found on the platform alone that it was traced for.
    return dataclasses.replace(
        program, platforms=("",), disabled_safety_checks=(export.DisabledSafetyCheck.platform(),)
    )


def _traced(function: Callable[..., Any], arguments: Any) -> tuple[export.Exported, Any]:
    """The program, of flat arguments and results, and the form of its results."""
    leaves, form = jax.tree.flatten(arguments)
    forms = []

    def flat(*leaves: Any) -> list[Any]:
        results, tree = jax.tree.flatten(function(*jax.tree.unflatten(form, leaves)))
        forms.append(tree)
        return results

    return export.export(jax.jit(flat))(*leaves), forms[0]


def _read(path: Path) -> tuple[export.Exported, Any] | None:
    """An entry, unless it is absent or not what was written under its name."""
    try:
        content = path.read_bytes()
        os.utime(path)  # used last now
    except OSError:
        return None
    if content[:_DIGEST] != _sum(path, content[_DIGEST:]):
        return None
    program, tree = pickle.loads(content[_DIGEST:])
    return export.deserialize(bytearray(program)), tree


def _write(path: Path, content: bytes) -> None:
    """Keeps an entry, and of all entries those that were used last; without room or permission, nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        temporary.write_bytes(_sum(path, content) + content)  # not forced to disk, for the sum tells what arrived there
        os.replace(temporary, path)
        files = [(file.stat(), file) for file in path.parent.iterdir()]
        room = MAX_BYTES
        for status, file in sorted(files, key=lambda entry: -entry[0].st_mtime):
            room -= status.st_size
            if room < 0:
                file.unlink()


def _sum(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
