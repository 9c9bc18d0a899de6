"""Compiled programs as XLA writes them: instructions by computation, read from optimised HLO."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str  # with the layout; of several results, all of them in brackets
    kind: str  # HLO's name of the operation
    operands: tuple[str, ...]  # names of instructions; of a constant or parameter, what stands there
    attributes: str  # what follows the operands

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        match = re.search(pattern, self.attributes)
        return match and match[1]


class Computation(NamedTuple):
    """Instructions by name, in the order in which they were scheduled, and which of them is the result."""

    instructions: dict[str, Instruction]
    root: str


class Program(NamedTuple):
    """Computations by name, and the one that runs first."""

    computations: dict[str, Computation]
    entry: str


_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")


def read(text: str) -> Program:
    """The program of a compiled function's ``as_text()``."""
    computations, entry, inside, root = {}, "", {}, ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside, root = {}, ""
            entry = head[2] if head[1] else entry
            name = head[2]
        elif line.startswith("}"):
            computations[name] = Computation(inside, root)
        elif match := _LINE.match(_COMMENT.sub("", line)):
            inside[match[2]] = _instruction(match[2], match[3])
            root = match[2] if match[1] else root
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    """From ``shape kind(operands), attributes``."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    kind, _, text = text.partition("(")
    end = _closing(f"({text}") - 1
    listed, attributes = text[: end - 1], text[end:]
    operands = re.findall(r"%([\w.\-]+)", listed) or [x.strip() for x in listed.split(",")]
    return Instruction(name, shape, kind, tuple(operands), attributes)


def _closing(text: str) -> int:
    """Where the bracket that a text begins with has been closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place + 1
    raise ValueError(f"a bracket stays open: {text[:80]}")


def scheduled(program: Program, name: str | None = None, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
    """Every instruction that is run by itself, in order: its computation, itself, and how often it runs.

    What is inside a fusion is not; what is inside a loop stands there once.
    """
    name = name or program.entry
    for instruction in program.computations[name].instructions.values():
        if instruction.kind == "while":
            yield from scheduled(program, called(instruction, "body"), times * _trips(program, instruction))
        elif instruction.kind in ("call", "async-start", "conditional"):  # of branches, the first
            branch = called(instruction, r"(?:to_apply|calls|branch_computations|true_computation)")
            yield from scheduled(program, branch, times)
        else:
            yield name, instruction, times


def called(instruction: Instruction, key: str) -> str:
    """The computation that an instruction names under a key."""
    name = instruction.attribute(key + r"=\{?%?([\w.\-]+)")
    assert name is not None, f"{instruction.kind} {instruction.name} does not say what it calls"
    return name


def _trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as XLA says, or the number that its condition compares a counter from 0 with."""
    known = loop.attribute(r"known_trip_count[^\d]*(\d+)")
    if known:
        return int(known)
    condition = program.computations[called(loop, "condition")]
    root = condition.instructions[condition.root]
    limits = [condition.instructions[x] for x in root.operands if x in condition.instructions]
    constants = [x.operands[0] for x in limits if x.kind == "constant" and x.operands[0].isdecimal()]
    return int(constants[0]) if root.attribute("direction=(LT)") and len(constants) == 1 else 1


_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]([{][^}]*[}])?")


def size(shape: str, *, in_memory: bool = False) -> int:
    """Bytes of a shape, or of several in brackets.

    Args:
        shape: as an instruction has it.
        in_memory: leave out what the layout puts into another memory than the device's main one.
    """
    return sum(
        math.ceil(_bits(dtype) * math.prod(dimensions(axes)) / 8)
        for dtype, axes, layout in _ARRAY.findall(shape)
        if not (in_memory and re.search(r"S\([1-9]\d*\)", layout))
    )


def arrays_of(shape: str) -> list[str]:
    """The shapes that stand in brackets, one by one."""
    return [match[0] for match in _ARRAY.finditer(shape)]


def axes_of(shape: str) -> list[int]:
    """The sizes of an array's axes."""
    match = _ARRAY.search(shape)
    return dimensions(match[2]) if match else []


def dimensions(listed: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(x) for x in listed.split(",") if x]


def _bits(dtype: str) -> int:
    """Of an element: ``bf16`` has 16, ``f8e4m3fn`` 8; tokens have none."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8 * (dtype == "pred")
