"""How far two arrays lie apart and where; which memory choices agree."""

import dataclasses
import math

import numpy as np

from mom_jax.evals.compare.records import Record, layer_numbers


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference between two arrays of one quantity.

    Attributes:
        quantity: its name in a `Record`.
        max_abs: largest absolute difference; infinite where either array is not finite.
        max_rel: that over the largest absolute value of the reference (or a floor, see `difference`).
        where: index of that element.
        tolerance: of ``max_rel``.
    """

    quantity: str
    max_abs: float
    max_rel: float
    where: tuple[int, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it lies within the tolerance."""
        return self.max_rel <= self.tolerance


def difference(
    quantity: str,
    ours: np.ndarray,
    reference: np.ndarray,
    tolerance: float,
    keep: np.ndarray | None = None,
    floor: float = 0.0,
) -> Difference:
    """Compares two arrays of one shape.

    Args:
        keep: [B, T] of bool, the tokens that count; all without it.
        floor: the least value that differences are set in relation to.

    Raises:
        ValueError: the shapes differ.
    """
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        raise ValueError(f"{quantity}: shape {ours.shape} here, {reference.shape} in the reference")
    counts = np.ones(ours.shape, bool)
    if keep is not None:
        counts &= keep.reshape(keep.shape + (1,) * (ours.ndim - keep.ndim))
    if not counts.any():
        return Difference(quantity, 0.0, 0.0, (), tolerance)
    with np.errstate(invalid="ignore"):
        gap = np.where(counts, np.abs(ours - reference), 0.0)
    gap = np.where(np.isfinite(gap), gap, math.inf)
    where = np.unravel_index(int(gap.argmax()), gap.shape)
    scale = max(float(np.abs(np.where(counts & np.isfinite(reference), reference, 0.0)).max()), floor)
    largest = float(gap[where])
    relative = 0.0 if largest == 0 else float(largest / scale) if scale > 0 else math.inf
    return Difference(quantity, largest, relative, tuple(map(int, where)), tolerance)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The memories that tokens chose in one layer.

    Attributes:
        tokens: how many were compared.
        differing: how many chose another set of memories.
        widest_gap: over those, the largest distance between the weakest logit that the reference chose and the
            strongest that it rejected, as a share of the layer's largest logit: 0 is a tie.
        tolerance: of ``widest_gap``; below it the choice lies within the rounding of the logits.
    """

    layer: int
    tokens: int
    differing: int
    widest_gap: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all choices agree but those within rounding of a tie."""
        return self.widest_gap <= self.tolerance

    @property
    def share_equal(self) -> float:
        """Share of the tokens with the same memories."""
        return 1 - self.differing / max(self.tokens, 1)


def compare_choices(
    layer: int,
    ours: np.ndarray,
    reference: np.ndarray,
    reference_logits: np.ndarray,
    tolerance: float,
    keep: np.ndarray,
) -> tuple[Choices, np.ndarray]:
    """Compares the choices [B, T, M] of the tokens in ``keep`` [B, T]; returns them and which tokens [B, T] agree."""
    equal = same_choices(ours, reference)
    weakest = np.where(reference, reference_logits, np.inf).min(-1)
    strongest = np.where(reference, -np.inf, reference_logits).max(-1)
    gap = (weakest - strongest) / max(float(np.abs(reference_logits).max()), 1e-30)
    wrong = keep & ~equal
    widest = float(gap[wrong].max()) if wrong.any() else 0.0
    return Choices(layer, int(keep.sum()), int(wrong.sum()), widest, tolerance), equal


def same_choices(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Tokens [...] that chose the same set of memories, of choices [..., M]."""
    return (ours == reference).all(-1)


def unaffected(equal: np.ndarray) -> np.ndarray:
    """Tokens [B, T] with no other choice at or before them in their row: rows are independent, and time is causal."""
    return np.logical_and.accumulate(equal, axis=1)


def equal_so_far(ours: Record, reference: Record) -> dict[int, np.ndarray]:
    """For each layer, the tokens [B, T] that no differing choice up to and in that layer can have reached."""
    with_router, clean = layer_numbers(reference, "choices"), {}
    keep = np.ones(reference["logits"].shape[:2], bool)
    for layer in layer_numbers(reference, "hidden"):
        if layer in with_router:
            name = f"choices/{layer}"
            keep = keep & unaffected(same_choices(ours[name], reference[name]))
        clean[layer] = keep
    return clean
