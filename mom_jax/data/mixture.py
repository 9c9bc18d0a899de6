"""A mixture: several texts, each with its share of the training windows."""

import dataclasses
import math
import re

from mom_jax.errors import InputError

_FORM = "expected NAME=WEIGHT:PATH, several with commas between, as in 'books=0.7:books/*.jsonl,code=0.3:code'"
_PART = re.compile(r"([\w-]+)=([^:]*):(.+)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Part:
    """One text of a mixture; weights of all parts sum to 1."""

    name: str
    weight: float
    path: str

    def __str__(self) -> str:
        return f"{self.name}={self.weight!r}:{self.path}"


def parse_mixture(text: str) -> list[Part]:
    """The parts that ``text`` spells.

    Raises:
        InputError: another form, a weight that is not a positive number, or a name that stands twice.
    """
    parts = []
    for piece in re.split(r",\s*(?=[\w-]+=)", text):
        match = _PART.fullmatch(piece.strip())
        if not match:
            raise InputError("mixture", piece or "''", _FORM)
        name, weight, path = match.groups()
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise InputError("mixture", piece, f"{weight or 'nothing'!r} is not a positive number; {_FORM}")
        parts.append(Part(name, number, path))
    twice = {part.name for part in parts if [p.name for p in parts].count(part.name) > 1}
    if twice:
        raise InputError("mixture", text, f"names {min(twice)} twice; give each part a name of its own")
    total = sum(part.weight for part in parts)
    return [dataclasses.replace(part, weight=part.weight / total) for part in parts]
