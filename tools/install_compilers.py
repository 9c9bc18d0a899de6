"""Installs compilers for accelerators that are not here, into a folder ``compilers`` of this Python's environment.

    .venv/bin/python tools/install_compilers.py

They are libtpu, XLA for CUDA and what lowers Triton kernels for it, in the versions that belong to the installed
JAX, and the assembler that ``jax[cuda12]`` brings; about 450 MB to load. Beside the environment's packages and not
among them, because JAX would look for the hardware at every start.
Python 3.12 and later, for which JAX has a release that goes with jax-triton, on Linux.
"""

import platform
import re
import subprocess
import sys
from importlib.metadata import requires, version

from mom_jax.planning.compilers import FOLDER


def requirements() -> list[str]:
    """The packages, with versions; CUDA 12 ended with 12.9."""
    (libtpu,) = (re.match(r"libtpu[^;\s]*", line) for line in requires("jax") or () if line.startswith("libtpu"))
    assert libtpu is not None
    cuda = [f"{name}=={version('jaxlib')}" for name in ("jax-cuda12-plugin", "jax-cuda12-pjrt")]
    return [libtpu[0], *cuda, "nvidia-cuda-nvcc-cu12>=12.9"]


def main() -> None:
    """Installs what is not there yet."""
    if sys.version_info < (3, 12) or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("install_compilers: nothing here; kernels are compiled by Python 3.12 or later on Linux, x86_64")
        return
    packages, stamp = requirements(), FOLDER / ".installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(packages):
        return
    print(f"install_compilers: {', '.join(packages)} into {FOLDER}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    if subprocess.run([*pip, "--target", str(FOLDER), *packages]).returncode:
        sys.exit("install_compilers: pip could not install them; see its lines above")
    stamp.write_text("\n".join(packages), encoding="utf-8")


if __name__ == "__main__":
    main()
