"""What a compiled program launches, and how many bytes each launch moves; on a TPU also the cycles that XLA expects.

Bytes are a launch's operands and results in the device's main memory, each once. What a fusion only slices or gathers
counts by what it takes, what it updates in place by what it writes, what it hands on by nothing. Loops count as often
as they run.
"""

import math
from typing import NamedTuple

from mom_jax.planning.collectives import KINDS
from mom_jax.planning.flops import flops_of
from mom_jax.planning.hlo import Computation, Instruction, Program, arrays_of, called, scheduled, size


class Launch(NamedTuple):
    """One operation that is launched by itself."""

    kind: str  # HLO's name; of a fusion its weightiest operation, of a custom call its target
    times: int  # in one run of the program
    bytes: int  # each time
    flops: float  # each time, of products and of kernels that declare them
    cycles: int  # each time, as XLA for TPU estimates; 0 elsewhere
    shape: str  # of the result
    source: str  # the line of Python's program that it comes from


_TARGET = r'custom_call_target="([^"]+)"'
# What is no launch: names for memory that is there already, and the ends of what was begun before.
_FREE = {
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "AllocateBuffer",
}  # fmt: skip
_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = ("dynamic-update-slice", "scatter")
# A fusion is named by the first of these that is in it.
_WEIGHTY = ("scatter", "gather", "sort", "dot", "convolution", "reduce", "dynamic-update-slice", "transpose")


def launches(program: Program) -> list[Launch]:
    """All launches of a compiled program, in order; one inside a loop stands there once."""
    return [
        _launch(program, program.computations[inside], instruction, times)
        for inside, instruction, times in scheduled(program)
        if not {instruction.kind, instruction.attribute(_TARGET)} & _FREE and not instruction.kind.endswith("-done")
    ]


def _launch(program: Program, around: Computation, instruction: Instruction, times: int) -> Launch:
    kind, inside = instruction.kind, None
    if kind == "custom-call":
        kind = instruction.attribute(_TARGET) or kind
    if kind in ("fusion", "fusion-start"):
        inside = program.computations[called(instruction, "calls")]
        kinds = {x.kind for x in inside.instructions.values()}
        kind = next((f"fusion of {x}" for x in _WEIGHTY if x in kinds), "fusion")
    touched = instruction.attribute(r"output_to_operand_aliasing.*bytes_accessed\\22: (\d+)")
    shapes = [around.instructions[x].shape for x in instruction.operands if x in around.instructions]
    sizes = [size(shape, in_memory=True) for shape in shapes]
    if touched:  # a kernel that changes arrays in place says how much of them
        moved = int(touched)
    elif kind == "slice-start":  # its shape is (operands, result, ...)
        result = arrays_of(instruction.shape)[1]
        moved = size(result) + size(result, in_memory=True)
    elif inside is None:  # the shape of what is begun holds the operands
        moved = size(instruction.shape, in_memory=True) + sum(sizes) * (not kind.endswith("-start"))
    else:
        moved = _written(inside) + _read(inside, sizes)
    cycles = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    source = instruction.attribute(r'op_name="([^"]*)"') or ""
    computed = [(around, instruction)] if inside is None else [(inside, x) for x in inside.instructions.values()]
    flops = sum(flops_of(*x) for x in computed)
    return Launch(kind, times, moved, flops, cycles, instruction.shape, source)


def _is_collective(instruction: Instruction) -> bool:
    """Whether it is part of a collective, which `mom_jax.planning.collectives` counts."""
    return instruction.kind in KINDS or "AsyncCollective" in instruction.attributes


def _read(inside: Computation, sizes: list[int]) -> int:
    """Bytes of its operands that a fusion reads."""
    users: dict[str, list[Instruction]] = {name: [] for name in inside.instructions}
    for instruction in inside.instructions.values():
        for operand in set(instruction.operands) & users.keys():
            users[operand].append(instruction)

    def taken(name: str) -> float:
        return sum(by(user, name) for user in users[name])

    def by(user: Instruction, name: str) -> float:
        if user.kind == "bitcast":
            return taken(user.name)
        if user.kind == "tuple" or _is_collective(user):
            return 0
        if user.operands[0] == name and user.operands.count(name) == 1:
            if user.kind in _SLICES:
                return size(user.shape)
            if user.kind in _UPDATES:
                return 0
        return math.inf

    parameters = {int(x.operands[0]): x.name for x in inside.instructions.values() if x.kind == "parameter"}
    return sum(int(min(whole, taken(parameters[number]))) for number, whole in enumerate(sizes))


def _written(inside: Computation) -> int:
    """Bytes that a fusion writes."""

    def of(instruction: Instruction) -> int:
        made = [inside.instructions[x] for x in instruction.operands if x in inside.instructions]
        if instruction.kind == "parameter" or _is_collective(instruction):
            return 0
        match instruction.kind:
            case "dynamic-update-slice":
                return size(made[1].shape)
            case "scatter":
                return 2 * size(made[-1].shape)  # what was there is read
            case "bitcast":
                return of(made[0])
            case "tuple":
                return sum(map(of, made))
        return size(instruction.shape, in_memory=True)

    return of(inside.instructions[inside.root])
