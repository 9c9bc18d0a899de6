"""Compiled programs as XLA writes them: instructions by computation, read from optimised HLO."""

import math
import re
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


def size(shape: str) -> int:
    """Bytes of a shape, or of several in brackets."""
    return sum(
        math.ceil(_bits(dtype) * math.prod(int(x) for x in axes.split(",") if x) / 8)
        for dtype, axes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape)
    )


def _bits(dtype: str) -> int:
    """Of an element: ``bf16`` has 16, ``f8e4m3fn`` 8; tokens have none."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8 * (dtype == "pred")
