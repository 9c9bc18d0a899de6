"""Compiled programs are kept from one command to the next, by JAX's own persistent cache.

The settings are environment variables that JAX reads when it is first imported, so this is called before. What is set
already stays: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and so on.
"""

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from mom_jax.paths import cache_folder, why_not_writable

OFF = "--no-compile-cache"
MAX_BYTES = 2 * 2**30  # then the programs that were not used for longest go
_FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep_programs(args: Sequence[str]) -> list[str]:
    """Sets up the cache, unless `OFF` is among the arguments, and returns the arguments without it.

    JAX locks the folder, so several processes can share it; an entry that cannot be read is compiled anew.
    """
    rest = [argument for argument in args if argument != OFF]
    if len(rest) < len(args) or "--dry-run" in args:  # which writes nothing
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif _FOLDER not in os.environ:
        folder = cache_folder() / "programs" / _machine()
        if why_not_writable(folder) is None:
            os.environ[_FOLDER] = str(folder)
            os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))
            # JAX leaves out what compiled in less than a second, but a command's start is many such programs.
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return rest


def _machine() -> str:
    """A name for machines that can run each other's programs: a home folder may be shared by others."""
    features = [platform.machine(), platform.processor()]
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        features += next(([line] for line in lines if line.startswith(("flags", "Features"))), [])
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]
