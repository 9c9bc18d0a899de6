"""How one model stands against others over several seeds, in words."""

from collections.abc import Mapping, Sequence

import numpy as np

Seeds = Sequence[float]  # a model's result with each seed


def standing(ours: Seeds, other: Seeds, lower: bool) -> str:
    """``better`` or ``worse`` where all seeds of ours are beyond all of theirs, else ``level``; "" where one lacks.

    Args:
        ours, theirs: results.
        lower: lower ones are better.
    """
    if not ours or not other:
        return ""
    if lower:
        ours, other = [-x for x in ours], [-x for x in other]
    return "better" if min(ours) > max(other) else "worse" if max(ours) < min(other) else "level"


def verdict(what: str, results: Mapping[str, Seeds], lower: bool = False) -> str:
    """A sentence: the first model of ``results`` against each of the others.

    Args:
        what: is measured.
        results: by model, with a seed or more each.
        lower: lower ones are better.
    """
    (first, ours), *others = results.items()
    by_standing: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for name, other_scores in others:
        by_standing[standing(ours, other_scores, lower)].append(f"{name} ({np.mean(other_scores):.3g})")
    words = {"better": "better than", "level": "level with", "worse": "worse than"}
    parts = [f"{words[kind]} {', '.join(names)}" for kind, names in by_standing.items() if names]
    return f"{what}: {first} ({np.mean(ours):.3g}) is {'; '.join(parts)}." if parts else f"{what}: {first} alone."
