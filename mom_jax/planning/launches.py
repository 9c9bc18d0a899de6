"""What a compiled program launches, and how many bytes each launch moves; on a TPU also the cycles that XLA expects.

Bytes are a launch's operands and results, each once. What a fusion only slices or gathers counts by what it takes, what
it updates in place by what it writes. Loops count as often as they run.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mom_jax.planning.hlo import Computation, Instruction, Program, read, size


class Launch(NamedTuple):
    """One operation that is launched by itself."""

    kind: str  # HLO's name; of a fusion its weightiest operation, of a custom call its target
    times: int  # in one run of the program
    bytes: int  # each time
    cycles: int  # each time, as XLA for TPU estimates; 0 elsewhere
    shape: str  # of the result
    source: str  # the line of Python's program that it comes from


# What is no launch: names for memory that is there already, and the ends of what was begun before.
_FREE = (
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id",
)  # fmt: skip
_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = ("dynamic-update-slice", "scatter")
# A fusion is named by the first of these that is in it.
_WEIGHTY = ("scatter", "gather", "sort", "dot", "convolution", "reduce", "dynamic-update-slice", "transpose")


def launches(text: str) -> list[Launch]:
    """All launches of a compiled function's ``as_text()``, in order; one inside a loop stands there once."""
    program = read(text)
    return list(_of_computation(program, program.entry, 1))


def _of_computation(program: Program, name: str, times: int) -> Iterator[Launch]:
    computation = program.computations[name]
    for instruction in computation.instructions.values():
        if instruction.kind == "while":
            trips = int(instruction.attribute(r"known_trip_count[^\d]*(\d+)") or 1)
            yield from _of_computation(program, _called(instruction, "body"), times * trips)
        elif instruction.kind in ("call", "async-start", "conditional"):  # of branches, the first
            called = _called(instruction, r"(?:to_apply|calls|branch_computations|true_computation)")
            yield from _of_computation(program, called, times)
        elif instruction.kind not in _FREE and not instruction.kind.endswith("-done"):
            yield _launch(program, computation, instruction, times)


def _called(instruction: Instruction, key: str) -> str:
    name = instruction.attribute(key + r"=\{?%?([\w.\-]+)")
    assert name is not None, f"{instruction.kind} {instruction.name} does not say what it calls"
    return name


def _launch(program: Program, around: Computation, instruction: Instruction, times: int) -> Launch:
    kind, inside = instruction.kind, None
    if kind == "custom-call":
        kind = instruction.attribute(r'custom_call_target="([^"]+)"') or kind
    if kind in ("fusion", "fusion-start"):
        inside = program.computations[_called(instruction, "calls")]
        kinds = {x.kind for x in inside.instructions.values()}
        kind = next((f"fusion of {x}" for x in _WEIGHTY if x in kinds), "fusion")
    touched = instruction.attribute(r"output_to_operand_aliasing.*bytes_accessed\\22: (\d+)")
    sizes = [size(around.instructions[x].shape) for x in instruction.operands if x in around.instructions]
    if touched:  # a kernel that changes arrays in place says how much of them
        moved = int(touched)
    elif inside is None:
        moved = size(instruction.shape) + sum(sizes)
    else:
        moved = _written(inside) + _read(inside, sizes)
    cycles = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    source = instruction.attribute(r'op_name="([^"]*)"') or ""
    return Launch(kind, times, moved, cycles, instruction.shape, source)


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
        match instruction.kind:
            case "dynamic-update-slice":
                return size(made[1].shape)
            case "scatter":
                return 2 * size(made[-1].shape)  # what was there is read
            case "bitcast":
                return of(made[0])
            case "tuple":
                return sum(map(of, made))
        return size(instruction.shape)

    return of(inside.instructions[inside.root])
