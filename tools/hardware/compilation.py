"""Compiles every program of a folder for an H100 that is not there, as the check that they will load and assemble."""

from collections.abc import Iterable
from pathlib import Path

import jax

from mom_jax.planning.targets import compiled, mesh
from tools.hardware.folder import Folder, read_folder


def compile_all(path: Path, only: Iterable[str] = ()) -> int:
    """Prints a line for each program that does not compile, and a count; returns how many did not."""
    folder, words = read_folder(path), list(only)
    names = [name for name in folder.entries if not words or any(word in name for word in words)]
    failed = 0
    for name in names:
        try:
            launched = compile_one(folder, name).count("triton_kernel_call")
            print(name, launched)
        except Exception as reason:  # noqa: BLE001  every program is tried
            failed += 1
            print(f"{name}: {str(reason)[:500]}")
    print(f"{len(names) - failed} of {len(names)} programs compile for an H100")
    return failed


def compile_one(folder: Folder, name: str) -> str:
    """The compiled program's text."""
    shapes = [jax.ShapeDtypeStruct(draw.shape, draw.dtype) for draw in folder.entries[name].inputs]
    return compiled(mesh("h100:1"), folder.program(name).call, *shapes).as_text()
