"""What the devices of a compiled program send each other."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mom_jax.planning.hlo import Computation, Instruction, Program, called, dimensions, scheduled, size

# What a device sends, in units of its operands, where n devices take part, by the best algorithm on a ring.
_SENT = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
KINDS = tuple(_SENT)


class Collective(NamedTuple):
    """One collective operation."""

    kind: str  # of `KINDS`
    times: int  # in one run of the program
    operands: int  # bytes of a device's operands, each time
    group: tuple[int, ...]  # places of the devices of one group in the mesh, flat; of a permutation, a pair
    source: str  # the line of Python's program that it comes from

    @property
    def sent(self) -> float:
        """Bytes that a device sends, each time."""
        return self.operands * _SENT[self.kind](len(self.group))


def collectives(program: Program, devices: int) -> list[Collective]:
    """All collectives of a compiled program, in order; one inside a loop stands there once.

    Args:
        program: for one of ``devices`` devices.
    """
    found: dict[tuple[str, ...], Collective] = {}
    for name, instruction, times in scheduled(program):
        for key, collective in _of_instruction(program, name, instruction, times, devices):
            found.setdefault(key, collective)
    return list(found.values())


def _of_instruction(
    program: Program, name: str, instruction: Instruction, times: int, devices: int
) -> Iterator[tuple[tuple[str, ...], Collective]]:
    around = program.computations[name]
    if _kind(instruction):
        yield (name, instruction.name), _collective(around, instruction, times, devices)
    elif instruction.kind in ("fusion", "fusion-start"):
        inside = program.computations[called(instruction, "calls")]
        for part in filter(_kind, inside.instructions.values()):
            # On a TPU a collective may be a chain of fusions, each of which computes something beside.
            chain = part.attribute(r'chain_id="(\d+)"')
            collective = _collective(inside, part, times, devices)
            if collective.kind == "all-reduce" and _is_sliced(inside, part):
                collective = collective._replace(kind="reduce-scatter")
            yield (name, "chain", chain) if chain else (name, instruction.name, part.name), collective


def _kind(instruction: Instruction) -> str | None:
    kind = instruction.kind.removesuffix("-start")
    return kind if kind in KINDS else None


def _collective(around: Computation, instruction: Instruction, times: int, devices: int) -> Collective:
    kind = _kind(instruction)
    assert kind is not None
    operands = sum(size(around.instructions[x].shape) for x in instruction.operands if x in around.instructions)
    source = instruction.attribute(r'op_name="([^"]*)"') or ""
    return Collective(kind, times, operands, _group(instruction.attributes, devices), source)


def _is_sliced(inside: Computation, reduced: Instruction) -> bool:
    """Whether of what was summed each device keeps its own piece, which XLA for TPU makes a scatter."""
    root = inside.instructions[inside.root]
    while root.kind == "bitcast":
        root = inside.instructions[root.operands[0]]
    return root.kind == "dynamic-slice" and root.operands[0] == reduced.name


def _group(attributes: str, devices: int) -> tuple[int, ...]:
    """The first group of devices; XLA writes groups in three ways."""
    if pair := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pair[1]), int(pair[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(dimensions(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _iota(dimensions(iota[1]), dimensions(iota[2]), iota[3])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", attributes):
        return _of_axes(mesh[1], mesh[2])
    return tuple(range(devices))


def _iota(shape: list[int], counted: list[int], order: str | None) -> tuple[int, ...]:
    """``[2,4]<=[4,2]T(1,0)``: the numbers of a box, its axes exchanged, in rows."""
    box = np.arange(math.prod(counted)).reshape(counted)
    box = box if order is None else box.transpose(dimensions(order))
    return tuple(box.reshape(shape)[0].tolist())


def _of_axes(sizes: str, chosen: str) -> tuple[int, ...]:
    """``mesh['a'=2,'b'=4] {'b'}``: devices that differ along these axes alone; ``'b':(2)2`` is a part of an axis."""
    axes = {name: int(number) for name, number in re.findall(r"'([^']*)'=(\d+)", sizes)}
    box = np.arange(math.prod(axes.values()))
    group, outer = np.zeros(1, int), len(box)
    strides = {}
    for name, number in axes.items():
        outer //= number
        strides[name] = outer
    for name, before, part in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen):
        number = int(part) if part else axes[name]
        stride = strides[name] * (axes[name] // (int(before or 1) * number))
        group = (group[:, None] + stride * np.arange(number)).reshape(-1)
    return tuple(group.tolist())
