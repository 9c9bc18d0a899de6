"""Comparisons of models over seeds: differences with intervals, and what a whole page of them bears out.

Runs with different seeds are independent draws. A difference of two means has Welch's t interval, which does not take
both spreads to be equal; with few seeds it is wider than one by bootstrap, and closer to the truth. Verdicts are taken
from Holm's correction over all comparisons that are shown together: the chance that even one of them is false
is at most 5 % then. Where the corrected p is larger, or the interval holds zero, a comparison is undecided.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from ..registry import Contrast

LEVEL = 0.95
Verdict = Literal["better", "worse", "undecided"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = f"[{self.low:.3f}, {self.high:.3f}]" if np.isfinite(self.low) else "(one seed, no interval)"
        return f"{self.value:.3f} {bounds}"

    def within(self, low: float, high: float) -> "Interval":
        """Cut to the values that there are."""
        return Interval(self.value, max(low, self.low), min(high, self.high)) if np.isfinite(self.low) else self


class Judged(NamedTuple):
    """A comparison among others: ours less theirs, p of no difference corrected by Holm, and the verdict."""

    contrast: Contrast
    difference: Interval
    corrected: float
    verdict: Verdict


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its t interval; infinite from one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Interval(mean, mean - half, mean + half)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Interval, float]:
    """Mean of ours less that of theirs with Welch's t interval, and p of no difference.

    One seed on either side gives an infinite interval and p = 1: nothing is known of its spread. Two groups without any
    spread differ for certain, or not at all.
    """
    value = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return Interval(value, -np.inf, np.inf), 1.0
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return Interval(value, value, value), float(value == 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # of one group without spread: it is exact
        test: Any = stats.ttest_ind(ours, theirs, equal_var=False)
    bounds = test.confidence_interval(LEVEL)
    return Interval(value, float(bounds.low), float(bounds.high)), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p corrected for all of them (Holm 1979): the smallest times their number, the next times one less, ..."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    factors = np.arange(len(p_values), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return corrected.tolist()


def judge(contrasts: Sequence[Contrast]) -> list[Judged]:
    """The comparisons of a page, each corrected for all."""
    tested = [difference(contrast.ours, contrast.theirs) for contrast in contrasts]
    corrected = holm([p for _, p in tested])
    return [
        Judged(contrast, interval, p, _verdict(interval, p, contrast.lower))
        for contrast, (interval, _), p in zip(contrasts, tested, corrected, strict=True)
    ]


def _verdict(interval: Interval, corrected: float, lower: bool) -> Verdict:
    if corrected > 1 - LEVEL or interval.low <= 0 <= interval.high:
        return "undecided"
    return "better" if (interval.value > 0) != lower else "worse"


METHOD = "Differences of means over seeds with Welch's 95 % intervals; p corrected for all of them by Holm."
HEADING = ["measured", "difference", "95 % interval", "means", "seeds", "p", "verdict"]


def row(judged: Judged) -> list[str]:
    """A comparison in the cells of `HEADING`: effect and interval before the verdict."""
    contrast, (value, low, high) = judged.contrast, judged.difference
    interval = f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else "none from one seed"
    means = f"{np.mean(contrast.ours):.3f}, {np.mean(contrast.theirs):.3f}"
    counts = f"{len(contrast.ours)}, {len(contrast.theirs)}"
    pair = f"{contrast.what}: {contrast.first} less {contrast.other}"
    return [pair, f"{value:+.3f}", interval, means, counts, f"{judged.corrected:.2g}", judged.verdict]
