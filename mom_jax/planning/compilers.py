"""Where the compilers for accelerators are that this machine lacks.

TPUs need libtpu, which the extra ``tpu`` brings, GPUs XLA's plugin for CUDA and its assembler, which ``gpu``
brings. Both may also lie in the folder ``compilers`` of this Python's environment, where JAX does not look for
hardware at every start.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from mom_jax.errors import InputError, install

FOLDER = Path(sys.prefix) / "compilers"
_PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "nvidia")}
_EXTRAS = {"tpu": "tpu", "cuda": "gpu"}


def find_compiler(platform: str) -> None:
    """Makes the compiler of a platform known, before JAX is imported, as it looks for them then.

    Raises:
        InputError: it is not installed; it names the line that installs it.
    """
    missing = [name for name in _PACKAGES[platform] if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if any(not (FOLDER / name).is_dir() for name in missing):
        remedy = f"needs {missing[0]}, which compiles for it: {install(_EXTRAS[platform])}"
        raise InputError("topology", platform, remedy)
    sys.path.append(str(FOLDER))
    importlib.invalidate_caches()
