"""How long a compiled step takes at least, by what its devices can compute, move and send in a second."""

import dataclasses

from jax.sharding import Mesh

from mom_jax.planning.chips import Chip
from mom_jax.planning.compiled import Compiled, link_of

ASSUMPTIONS = (
    "each launch takes as long as its products at the chip's full bfloat16 rate or its bytes at the full bandwidth of "
    "the memory, whichever is more; nothing that is sent is hidden behind what is computed; a ring of TPUs sends both "
    "ways, a GPU at its NVLink's or, between machines, its network's rate; data is always there. A bound from below "
    "for the computing, so real steps take longer: kernels measured on GPUs took 2 to 3 times as long as their bytes"
)


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step.

    Attributes:
        products, memory: at the chip's full rates, all launches together.
        device: launch by launch, the longer of both.
        network: what is sent.
    """

    products: float
    memory: float
    device: float
    network: float

    @property
    def step(self) -> float:
        """Nothing hidden."""
        return self.device + self.network

    @property
    def hidden(self) -> float:
        """Everything hidden that could be."""
        return max(self.device, self.network)


def time_of(compiled: Compiled, mesh: Mesh, chip: Chip, flops: float) -> Time:
    """The least time of a step.

    Args:
        compiled: the step.
        mesh: that it is compiled for.
        chip: of its devices.
        flops: that a device computes by the model, for kernels that do not declare theirs.
    """
    products = max(compiled.flops, flops) / chip.flops
    launches = sum(x.times * max(x.flops / chip.flops, x.bytes / chip.bandwidth) for x in compiled.launched)
    network = sum(x.times * x.sent / link_of(x, mesh, chip) for x in compiled.sent)
    return Time(products, compiled.moved / chip.bandwidth, max(launches, products), network)
