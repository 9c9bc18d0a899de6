"""The newest version of PTX that the assembler of the installed CUDA accepts.

Triton writes PTX for its own assembler, but XLA assembles with the one that JAX finds, which may be
older: Triton 3.9 writes version 9.4 for sm_90 and later, while the ptxas 12.9 of ``jax[cuda12]`` accepts 8.8 at most.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PTX_WITHOUT_CUDA = 88  # CUDA 12.9: a program that is made here for another machine runs where jax[cuda12] is


@functools.cache
def ptx_version() -> int:
    """Ten times the newest PTX version that the assembler accepts; `PTX_WITHOUT_CUDA` where none is found."""
    ptxas = find_ptxas()
    return PTX_WITHOUT_CUDA if ptxas is None else ptx_of(ptxas)


def find_ptxas() -> Path | None:
    """The assembler that XLA will call, sought as JAX and XLA seek it; None where there is none.

    First the folder ``CUDA_ROOT`` or else NVIDIA's packages, then the path, then the usual place.
    """
    on_path = shutil.which("ptxas")
    places = [*(folder / "bin/ptxas" for folder in _cuda_folders()), *([Path(on_path)] if on_path else [])]
    return next((x for x in [*places, Path("/usr/local/cuda/bin/ptxas")] if x.is_file()), None)


def _cuda_folders() -> Iterator[Path]:
    if "CUDA_ROOT" in os.environ:
        yield Path(os.environ["CUDA_ROOT"])
        return
    if importlib.util.find_spec("nvidia") is None:
        return
    for package in ("nvidia.cu13", "nvidia.cuda_nvcc"):
        spec = importlib.util.find_spec(package)
        yield from map(Path, spec.submodule_search_locations or () if spec else ())


def ptx_of(ptxas: Path) -> int:
    """Ten times the newest PTX version that an assembler accepts.

    CUDA 12.6 skipped one, 13.0 began anew (PTX ISA, release notes).
    """
    version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, encoding="utf-8", check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", version)
    assert match is not None, f"{ptxas} --version says no release: {version}"
    major, minor = int(match[1]), int(match[2])
    if major == 12:
        return 80 + minor - (minor >= 6)
    return 10 * (major - 4) + minor
