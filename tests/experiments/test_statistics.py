"""Differences over seeds, and what a page of them bears out."""

import math
import warnings

import numpy as np
import pytest
from mom_jax.experiments.common.statistics import HEADING, difference, holm, judge, mean_interval, row
from mom_jax.experiments.registry import Contrast
from scipy import stats


def test_welch():
    """Of two groups with different spreads; by the formula of the textbooks."""
    ours, theirs = (0.9, 0.8, 0.85, 0.95), (0.2, 0.6, 0.3, 0.5)
    interval, p = difference(ours, theirs)
    parts = [np.var(x, ddof=1) / len(x) for x in (ours, theirs)]
    freedom = sum(parts) ** 2 / sum(part**2 / 3 for part in parts)
    half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
    assert interval.value == pytest.approx(0.475)
    assert (interval.low, interval.high) == pytest.approx((0.475 - half, 0.475 + half))
    assert p == pytest.approx(2 * stats.t.sf(0.475 / sum(parts) ** 0.5, freedom))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """19 in 20 times, for groups of three and five with different spreads."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        interval, _ = difference(rng.normal(1, 1, 3), rng.normal(0, 0.3, 5))
        hits += interval.low <= 1 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_one_seed_says_nothing_and_equal_ones_say_all():
    interval, p = difference([1.0], [0.0, 0.1])
    assert math.isinf(interval.high) and p == 1
    assert mean_interval([0.5]).low == -math.inf and "one seed" in str(mean_interval([0.5]))
    assert difference([1.0, 1.0], [0.5, 0.5])[1] == 0 and difference([1.0, 1.0], [1.0, 1.0])[1] == 1


def test_one_group_without_spread_is_as_good_as_any():
    """As a model has whose seeds all know everything; nothing is warned of."""
    theirs = (0.2, 0.6, 0.3, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval, p = difference([1.0] * 4, theirs)
    alone = mean_interval(theirs)
    assert (interval.low, interval.high) == pytest.approx((1 - alone.high, 1 - alone.low)) and 0 < p < 0.05


def test_holm():
    """Worked by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and never less than one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_verdicts_are_of_the_whole_page():
    """What one comparison would bear out, forty do not; lower may be better."""
    close = Contrast("x", "a", "b", (0.60, 0.66, 0.70, 0.64), (0.50, 0.56, 0.52, 0.58))
    assert judge([close])[0].verdict == "better"
    assert {one.verdict for one in judge([close] * 40)} == {"undecided"}
    assert judge([close._replace(lower=True)])[0].verdict == "worse"
    assert judge([close._replace(theirs=close.ours)])[0].verdict == "undecided"


def test_chance_alone_gives_a_false_verdict_on_few_pages():
    """Pages of 30 comparisons of nothing: at most 1 in 20 has a verdict."""
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(30, 30, 2, 4))
    pages = [judge([Contrast("", "", "", tuple(a), tuple(b)) for a, b in page]) for page in drawn]
    assert np.mean([any(one.verdict != "undecided" for one in page) for page in pages]) <= 0.1


def test_a_row_has_effect_and_interval_before_the_verdict():
    cells = row(judge([Contrast("recall", "MoM", "one", (0.9, 0.92), (0.4, 0.42))])[0])
    assert len(cells) == len(HEADING) and cells[0] == "recall: MoM less one" and cells[1] == "+0.500"
    assert cells[-1] == "better" and cells[4] == "2, 2"
