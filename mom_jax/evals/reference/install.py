"""Which packages of the extra ``parity`` are there, and which kernels run; imports none of them."""

import importlib.metadata
import importlib.util
import re
from typing import Literal

from mom_jax.errors import InputError, install

RELEASE = "0.6.0"  # of flash-linear-attention, the release that the comparison is written for
REMEDY = install("parity")
PACKAGES = ("flash-linear-attention", "torch", "transformers")

Kernels = Literal["triton", "interpreter", "naive"]


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a comparison needs and that have one name everywhere.

    Raises:
        InputError: one is missing, or flash-linear-attention is older than `RELEASE`.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(package, "not installed", f"a comparison runs it; {REMEDY}") from None
    if importlib.util.find_spec("triton") is None:  # by module: its package has another name for some devices
        raise InputError("triton", "not installed", f"flash-linear-attention needs it; {REMEDY}")
    have = versions[PACKAGES[0]]
    if _numbers(have) < _numbers(RELEASE):
        raise InputError(PACKAGES[0], have, f"is older than {RELEASE}, which this comparison is written for; {REMEDY}")
    return versions


def choose_kernels(kernels: Literal["auto"] | Kernels, gpu: bool) -> Kernels:
    """What runs the reference's operators: its Triton kernels on a GPU, naive PyTorch on a CPU, or what is wanted.

    Raises:
        InputError: Triton's compiler without a GPU, or its interpreter beside one.
    """
    if kernels == "triton" and not gpu:
        raise InputError("kernels", kernels, "needs a GPU that PyTorch sees; without one use naive or interpreter")
    if kernels == "interpreter" and gpu:
        raise InputError("kernels", kernels, "is for machines without a GPU; use triton or naive")
    if kernels == "auto":
        return "triton" if gpu else "naive"
    return kernels


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: 0.6.0.post1 is (0, 6, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
