"""Tuning parameters of kernels, in one type of table for all of them.

The table of a kernel is in its module; `python -m mom_jax.benchmarks.tune` searches for better numbers on the hardware.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pallas_kernels.chunks import Unsupported

# Generations of GPUs, as JAX and Triton name them.
HOPPER = ("sm_90", "sm_100")  # and later
NVIDIA = ("sm_80", *HOPPER)
AMD = ("gfx942",)


class Config(NamedTuple):
    """Sizes of a kernel's blocks and parameters of its launch; 0 for what a kernel does not have."""

    block_m: int = 0  # rows of the result, in a product of matrices
    block_n: int = 0  # columns of the result
    block_k: int = 0  # channels summed over at once; of a recurrence, key channels
    block_v: int = 0  # value channels
    block_h: int = 0  # heads
    num_warps: int = 0  # as Triton has them
    num_stages: int = 0


class Entry(NamedTuple):
    """A configuration, and the calls to which it applies."""

    config: Config
    devices: tuple[str, ...] = ()  # generations such as "sm_90" or "v5e"; empty: all
    itemsize: int | None = None  # bytes of an element of the rows; None: any
    size: int | None = None  # the most channels a head may have, keys or values; None: any number


Configs = dict[str, list[Entry]]  # of an operator's kernels, by name


def find(entries: Sequence[Entry], device: str, itemsize: int, size: int) -> Config:
    """The configuration of the first entry that applies to such calls.

    Args:
        entries: of one kernel.
        device: the generation.
        itemsize: bytes of an element of the rows.
        size: the larger of K and V.

    Raises:
        Unsupported: there is none.
    """
    for entry in entries:
        fits = not entry.devices or device in entry.devices
        fits = fits and entry.itemsize in (None, itemsize)
        if fits and (entry.size is None or size <= entry.size):
            return entry.config
    raise Unsupported(f"there is no configuration for {device}, {itemsize} bytes and {size} channels")
