"""The step of a run, compiled for a topology and read: what a device holds, computes, moves and sends."""

import collections
import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mom_jax.planning import hlo
from mom_jax.planning.chips import Chip
from mom_jax.planning.collectives import Collective, collectives
from mom_jax.planning.launches import Launch, launches
from mom_jax.planning.step import traced_step
from mom_jax.planning.targets import compile_lowered
from mom_jax.training.memory import device_bytes
from mom_jax.training.program import Program

_LONGEST = 300  # characters of a compiler's message
# Targets of XLA's custom calls that are kernels.
_KERNELS = {
    "tpu_custom_call": "Pallas",
    "triton_kernel_call_ffi": "Triton",
    "triton_kernel_call": "Triton",
    "mosaic_gpu_v2": "Mosaic GPU",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, on each device.

    Attributes:
        parameters, optimizer, temporaries, other: bytes; a moving average of the parameters is the optimizer's,
            ``temporaries`` are all that lives during a step, activations among them, ``other`` the batch and the code.
        launched: what is launched.
        sent: collectives.
        kernels: calls of kernels in the program by kind: Pallas, Triton, or libtpu's own for ``ragged_dot``.
        seconds: that compiling took.
    """

    parameters: int
    optimizer: int
    temporaries: int
    other: int
    launched: list[Launch]
    sent: list[Collective]
    kernels: dict[str, int]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.parameters + self.optimizer + self.temporaries + self.other

    @property
    def flops(self) -> float:
        """Of products outside kernels, and of kernels that declare theirs (those of TPUs do)."""
        return sum(x.times * x.flops for x in self.launched)

    @property
    def moved(self) -> int:
        """Bytes between the device's memory and its cores."""
        return sum(x.times * x.bytes for x in self.launched)


class TooLarge(Exception):
    """A program that the compiler could not fit into a device's memory; ``needed`` in bytes, 0 if it does not say."""

    def __init__(self, needed: int):
        super().__init__(f"needs {needed:,} bytes")
        self.needed = needed

    def __reduce__(self):
        return type(self), (self.needed,)  # not by its message, as exceptions do


class Failed(Exception):
    """What the compiler could not compile; its own message."""


def compile_step(program: Program) -> Compiled:
    """Compiles the training step of a run for the devices of the program's mesh.

    Raises:
        TooLarge: it needs more memory than a device has.
        Failed: the compiler says that it cannot.
    """
    begin, mesh = time.monotonic(), program.mesh
    lowered = traced_step(program).lower()
    try:
        made = compile_lowered(mesh, lowered)
    except jax.errors.JaxRuntimeError as error:
        needed = _memory_that_is_missing(str(error))
        if needed is None:
            raise Failed(" ".join(str(error).split())[:_LONGEST]) from error
        raise TooLarge(needed) from error
    return read_step(made, program, time.monotonic() - begin)


def _memory_that_is_missing(message: str) -> int | None:
    """Bytes that the compiler wanted, if that is what its message says: the most that it names."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])\b", message)
    return max((int(float(size) * 1024 ** (1 + "KMGT".index(unit))) for size, unit in sizes), default=0)


def read_step(made: Any, program: Program, seconds: float = 0.0) -> Compiled:
    """What JAX's compiled object of a step says."""
    text, memory, state = made.as_text(), made.memory_analysis(), program.abstract
    code = hlo.read(text)
    parameters, optimizer = device_bytes(state.params), device_bytes((state.opt_state, state.ema))
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    other = held + memory.generated_code_size_in_bytes - parameters - optimizer
    launched = launches(code)
    return Compiled(
        parameters,
        optimizer,
        memory.temp_size_in_bytes,
        max(other, 0),
        launched,
        collectives(code, program.mesh.size),
        _kernels(code),
        seconds,
    )


def _kernels(program: hlo.Program) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            name = _KERNELS.get(instruction.attribute(r'custom_call_target="([^"]+)"') or "")
            if name:
                found["ragged_dot" if "ragged-dot" in instruction.name else name] += 1
    return dict(found)


def axes_between(collective: Collective, mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a collective differ."""
    places = np.unravel_index(collective.group, tuple(mesh.shape.values()))
    return tuple(name for name, along in zip(mesh.shape, places, strict=True) if np.unique(along).size > 1)


def link_of(collective: Collective, mesh: Mesh, chip: Chip) -> float:
    """Bytes a second that a device sends in a collective."""
    numbers = [mesh.devices.flat[device].id for device in collective.group]
    leaves = chip.node and len({number // chip.node for number in numbers}) > 1
    return chip.network if leaves else chip.link
