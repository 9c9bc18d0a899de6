"""How one model stands against others over several seeds, in words."""

from collections.abc import Mapping, Sequence

import numpy as np

Seeds = Sequence[float]  # a model's result with each seed


def standing(ours: Seeds, theirs: Seeds, lower: bool) -> str:
    """``better`` or ``worse`` where all seeds of ours are beyond all of theirs, else ``level``; "" where one lacks.

    Args:
        ours, theirs: results.
        lower: lower ones are better.
    """
    if not ours or not theirs:
        return ""
    if lower:
        ours, theirs = [-x for x in ours], [-x for x in theirs]
    return "better" if min(ours) > max(theirs) else "worse" if max(ours) < min(theirs) else "level"


def verdict(what: str, results: Mapping[str, Seeds], lower: bool = False) -> str:
    """A sentence: the first model of ``results`` against each of the others.

    Args:
        what: is measured.
        results: by model, with a seed or more each.
        lower: lower ones are better.
    """
    (first, ours), *others = results.items()
    found: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for name, theirs in others:
        found[standing(ours, theirs, lower)].append(f"{name} ({np.mean(theirs):.3g})")
    words = {"better": "better than", "level": "level with", "worse": "worse than"}
    parts = [f"{words[kind]} {', '.join(names)}" for kind, names in found.items() if names]
    return f"{what}: {first} ({np.mean(ours):.3g}) is {'; '.join(parts)}." if parts else f"{what}: {first} alone."
