"""Every quantity of a model beside the reference's, in float32."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mom_jax.evals.compare.differences import Choices, Difference, compare_choices, difference, unaffected
from mom_jax.evals.compare.records import Record, Subject, layer_numbers

# Largest difference over the quantity's largest value. Float32 rounds at 6e-8, the two sides sum in another order, and
# a gradient sums over all tokens.
TOLERANCES: Mapping[str, float] = {
    "hidden": 1e-5,
    "router": 1e-5,
    "logits": 1e-5,
    "loss": 1e-6,
    "gradient": 1e-4,
    "decode": 1e-5,
}
# Some gradients are exactly 0 in theory (the decay of a memory that only holds single tokens) and rounding noise in
# practice: a tensor counts as at least this share of the largest of its kind.
ZERO = 1e-3
STEPS = 8  # single decoding steps, at most
PROMPT = 16  # tokens before a greedy continuation, at most


@dataclasses.dataclass(frozen=True)
class Layer:
    """One block: its output, and its router where it has one.

    ``compared`` is the share of the tokens that no differing choice can have reached; only those count.
    """

    number: int
    hidden: Difference
    router: Difference | None
    choices: Choices | None
    compared: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """Greedy continuations: tokens [B, new] up to the first difference of each row.

    Attributes:
        equal, total: tokens.
        first: (row, token) of the earliest difference.
        lead: over the rows that differ, the largest lead of the reference's token over the next best one there, the
            distance of their logits over the largest logit.
        tolerance: of ``lead``; below it the two best lie within rounding.
    """

    equal: int
    total: int
    first: tuple[int, int] | None
    lead: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all tokens agree, but for those that follow two equal logits."""
        return self.lead <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All of it. ``gradients`` begin with the worst; ``rows`` are those that losses, gradients and decoding used."""

    layers: list[Layer]
    outputs: list[Difference]
    gradients: list[Difference]
    generation: Generation | None
    rows: tuple[int, int]

    @property
    def ok(self) -> bool:
        """Whether everything lies within its tolerance, and something was left to compare."""
        parts = [self.generation, *self.outputs, *self.gradients]
        for layer in self.layers:
            parts += [layer.hidden, layer.router, layer.choices]
        return self.rows[0] > 0 and all(part.ok for part in parts if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a number that is not finite becomes text."""

        def entry(part):
            return None if part is None else {**dataclasses.asdict(part), "ok": part.ok}

        layers = [
            {
                "layer": layer.number,
                "hidden": entry(layer.hidden),
                "router": entry(layer.router),
                "choices": entry(layer.choices),
                "compared": layer.compared,
            }
            for layer in self.layers
        ]
        return json_ready(
            {
                "ok": self.ok,
                "layers": layers,
                "outputs": [entry(part) for part in self.outputs],
                "gradients": [entry(part) for part in self.gradients],
                "generation": entry(self.generation),
                "rows": {"compared": self.rows[0], "of": self.rows[1]},
            }
        )


def json_ready(value: Any) -> Any:
    """Dictionaries, lists and scalars that JSON knows; infinite and undefined numbers as text."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def tolerances(scale: float = 1.0, override: float | None = None) -> dict[str, float]:
    """The tolerance of each kind of quantity: `TOLERANCES` times ``scale``, or ``override`` for all."""
    return {kind: override if override is not None else scale * value for kind, value in TOLERANCES.items()}


def compare(
    ours: Subject, reference: Subject, ids: np.ndarray, new_tokens: int, limits: Mapping[str, float]
) -> Comparison:
    """Runs both on the same tokens.

    A router that rounds the other way at a tie sends a token elsewhere, and nothing after it can be compared. So the
    tokens at and after such a choice do not count from that layer on, and rows with one are left out of losses,
    gradients and decoding. A choice that differs without a tie is a failure.

    Args:
        ids: [B, T].
        new_tokens: length of the greedy continuations; 0 leaves them out.
        limits: from `tolerances`.
    """
    actual, expected = ours.forward(ids), reference.forward(ids)
    layers, clean = _layers(actual, expected, limits)
    outputs = [difference("logits", actual["logits"], expected["logits"], limits["logits"], clean)]
    rows = np.flatnonzero(clean.all(1))
    gradients, generation = [], None
    if len(rows):
        ids = ids[rows]
        actual, expected = ours.loss_and_gradients(ids), reference.loss_and_gradients(ids)
        outputs += _matching(actual, expected, "loss", limits)
        gradients = sorted(_matching(actual, expected, "gradient", limits), key=lambda d: d.max_rel, reverse=True)
        prefill = ids.shape[1] - min(STEPS, ids.shape[1] // 2)
        actual, expected = ours.decode(ids, prefill), reference.decode(ids, prefill)
        outputs += _matching(actual, expected, "decode", limits)
        if new_tokens:
            generation = _generation(ours, reference, ids[:, :PROMPT], new_tokens, limits["decode"])
    return Comparison(layers, outputs, gradients, generation, (len(rows), len(clean)))


def _layers(ours: Record, reference: Record, limits: Mapping[str, float]) -> tuple[list[Layer], np.ndarray]:
    keep = np.ones(reference["logits"].shape[:2], bool)
    layers, with_router = [], layer_numbers(reference, "router")
    for number in layer_numbers(reference, "hidden"):
        router = choices = None
        if number in with_router:
            name = f"router/{number}"
            router = difference(name, ours[name], reference[name], limits["router"], keep)
            # Both logits of a tie may be off.
            tie = 2 * limits["router"]
            chosen = f"choices/{number}"
            choices, equal = compare_choices(number, ours[chosen], reference[chosen], reference[name], tie, keep)
            keep = keep & unaffected(equal)
        name = f"hidden/{number}"
        hidden = difference(name, ours[name], reference[name], limits["hidden"], keep)
        layers.append(Layer(number, hidden, router, choices, float(keep.mean())))
    return layers, keep


def _matching(ours: Record, reference: Record, kind: str, limits: Mapping[str, float]) -> list[Difference]:
    names = [name for name in reference if name.startswith(f"{kind}/")]
    if set(names) != {name for name in ours if name.startswith(f"{kind}/")}:
        raise ValueError(f"{kind}: other names here than in the reference")
    floor = ZERO * max(float(np.abs(reference[name]).max()) for name in names)
    return [difference(name, ours[name], reference[name], limits[kind], floor=floor) for name in names]


def _generation(ours: Subject, reference: Subject, prompt: np.ndarray, new_tokens: int, limit: float) -> Generation:
    tokens, expected = (side.continue_greedily(prompt, new_tokens) for side in (ours, reference))
    same = unaffected(tokens == expected)
    firsts = [(int(row), int(same[row].sum())) for row in np.flatnonzero(~same.all(1))]
    lead = max((_lead(reference, prompt[row], expected[row, :token]) for row, token in firsts), default=0.0)
    first = min(firsts, key=lambda place: place[1]) if firsts else None
    return Generation(int(same.sum()), same.size, first, lead, 2 * limit)


def _lead(reference: Subject, prompt: np.ndarray, continuation: np.ndarray) -> float:
    """Distance of the two best logits behind a sequence, as a share of the largest."""
    logits = reference.forward(np.concatenate([prompt, continuation])[None])["logits"][0, -1]
    best = np.sort(logits)[-2:]
    return float((best[1] - best[0]) / np.abs(logits).max())
