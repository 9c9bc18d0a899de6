"""Accelerators that a run can be planned for: what a device has, as its maker says, and the sizes that are sold.

Importing this module imports no JAX.
"""

import dataclasses
import math

from mom_jax.errors import InputError
from mom_jax.peaks import peak_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
        name: in topologies.
        platform: of XLA's compiler.
        kind: as JAX names the device.
        memory: bytes that a program may use.
        bandwidth: of its memory, bytes a second.
        link: bytes a second that it sends to neighbours: both ways around a ring of TPUs, NVLink on GPUs.
        network: the same to devices of other machines, where that is another way.
        node: devices of a machine, where beyond it lies the network; 0 where all are linked.
    """

    name: str
    platform: str
    kind: str
    memory: int
    bandwidth: float
    link: float
    network: float = 0.0
    node: int = 0

    @property
    def flops(self) -> float:
        """Products of bfloat16 matrices, FLOPs a second."""
        peak = peak_flops(self.kind)
        assert peak is not None, self.kind
        return peak


# TPUs: Google Cloud's pages of each version; memory as libtpu says it. GPUs: NVIDIA's data sheets of the SXM5 cards,
# memory as CUDA's device query says it, and a network adapter of 400 Gb/s for each card.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", "TPU v5 lite", int(15.75 * GIB), 819e9, 90e9),
        Chip("v6e", "tpu", "TPU v6 lite", int(31.24 * GIB), 1640e9, 180e9),
        Chip("v5p", "tpu", "TPU v5", int(95.73 * GIB), 2765e9, 180e9),
        Chip("h100", "cuda", "NVIDIA H100 80GB HBM3", 84929347584, 3352e9, 450e9, 50e9, 8),
        Chip("h200", "cuda", "NVIDIA H200", 150754820096, 4800e9, 450e9, 50e9, 8),
    )
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES}
_LARGEST = 4096  # GPUs


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that belong together, as ``v5p:8x8x8`` or ``h100:16``."""

    chip: Chip
    shape: tuple[int, ...]  # of TPUs; nodes and devices of each for GPUs

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As a user writes it."""
        size = self.devices if self.chip.node else "x".join(map(str, self.shape))
        return f"{self.chip.name}:{size}"


def find_topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
        InputError: there is none; it lists those that are known.
    """
    kind, _, size = name.lower().partition(":")
    chip = CHIPS.get(kind)
    if chip is not None and size in SHAPES.get(kind, ()):
        return Topology(chip, tuple(map(int, size.split("x"))))
    if chip is not None and chip.node and size.isascii() and size.isdecimal():
        count = int(size)
        if count in (1, 2, 4) or (0 < count <= _LARGEST and count % chip.node == 0):
            each = min(count, chip.node)
            return Topology(chip, (count // each, each))
    raise InputError("topology", name, f"unknown; choose one of {known()}")


def known() -> str:
    """All topologies, in words."""
    kinds = {shapes: [kind for kind in SHAPES if SHAPES[kind] == shapes] for shapes in SHAPES.values()}
    tpus = [f"{' or '.join(names)}:{', '.join(shapes)}" for shapes, names in kinds.items()]
    gpus = " or ".join(name for name, chip in CHIPS.items() if chip.node)
    return "; ".join([*tpus, f"{gpus}:1, 2, 4, 8 or a multiple of 8 up to {_LARGEST}"])
