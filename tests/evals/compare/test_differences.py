"""How far arrays lie apart, and which choices agree."""

import math

import numpy as np
import pytest

from mom_jax.evals.compare.differences import compare_choices, difference, unaffected
from mom_jax.evals.compare.records import as_mask


def test_the_largest_difference_and_its_place():
    want = np.array([[1.0, -4.0], [2.0, 0.5]])
    got = want + np.array([[0.0, 0.1], [-0.2, 0.0]])
    found = difference("x", got, want, tolerance=0.04)
    assert found.where == (1, 0)
    assert found.max_abs == pytest.approx(0.2) and found.max_rel == pytest.approx(0.05)
    assert not found.ok and difference("x", got, want, tolerance=0.06).ok


def test_tokens_that_do_not_count_are_left_out():
    want, keep = np.ones((2, 3, 4)), np.ones((2, 3), bool)
    got = want.copy()
    got[1, 2, 3], got[0, 1, 0] = 9, 1.5
    keep[1, 2] = False
    found = difference("x", got, want, 1e-5, keep)
    assert found.where == (0, 1, 0) and found.max_abs == pytest.approx(0.5)
    assert difference("x", got, want, 1e-5, np.zeros((2, 3), bool)).ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["ours", "reference"])
def test_what_is_not_finite_is_infinitely_far_away(bad, side):
    arrays = {"ours": np.ones(4), "reference": np.ones(4)}
    arrays[side][2] = bad
    found = difference("x", **arrays, tolerance=1.0)
    assert found.max_abs == math.inf and found.where == (2,) and not found.ok


def test_a_zero_reference_needs_a_floor():
    assert difference("x", np.full(3, 1e-9), np.zeros(3), 1.0).max_rel == math.inf
    assert difference("x", np.full(3, 1e-9), np.zeros(3), 1.0, floor=1e-3).max_rel == pytest.approx(1e-6)
    assert difference("x", np.zeros(3), np.zeros(3), 1.0).max_rel == 0


def test_other_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"x: shape \(2,\) here, \(3,\) in the reference"):
        difference("x", np.zeros(2), np.zeros(3), 1.0)


def masks(*memories: list[int]) -> np.ndarray:
    """Choices [1, T, 4] of tokens."""
    return as_mask(np.array([memories]), 4)


def test_choices_are_sets():
    assert masks([0, 2], [2, 0]).tolist() == [[[True, False, True, False]] * 2]
    logits = np.array([[[3.0, 0.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]])
    found, equal = compare_choices(0, masks([2, 0], [1, 2]), masks([0, 2], [0, 1]), logits, 1e-5, np.ones((1, 2), bool))
    assert equal.tolist() == [[True, False]] and found.differing == 1 and not found.ok


def test_a_tie_may_fall_either_way_and_nothing_else():
    logits = np.array([[[3.0, 1.0, 0.5, 0.0], [2.0, 1.0, 1.0 - 1e-7, 0.0]]])
    reference, everything = masks([0, 1], [0, 1]), np.ones((1, 2), bool)
    found, equal = compare_choices(4, masks([0, 1], [0, 2]), reference, logits, 1e-6, everything)
    assert (found.tokens, found.differing, found.ok) == (2, 1, True) and found.share_equal == 0.5
    assert found.widest_gap == pytest.approx(1e-7 / 3, rel=1e-3)
    assert equal.tolist() == [[True, False]]
    found, _ = compare_choices(4, masks([0, 2], [0, 2]), reference, logits, 1e-6, everything)
    assert found.differing == 2 and found.widest_gap == pytest.approx(0.5 / 3) and not found.ok
    found, _ = compare_choices(4, masks([0, 2], [0, 2]), reference, logits, 1e-6, np.array([[False, True]]))
    assert (found.tokens, found.differing) == (1, 1) and found.ok


def test_all_memories_chosen_cannot_differ():
    everything = np.ones((1, 2, 4), bool)
    found, equal = compare_choices(0, everything, everything, np.ones((1, 2, 4)), 0.0, np.ones((1, 2), bool))
    assert found.ok and found.differing == 0 and equal.all()


def test_a_choice_reaches_later_tokens_of_its_row_alone():
    equal = np.ones((2, 4), bool)
    equal[0, 2] = False
    assert unaffected(equal).tolist() == [[True, True, False, False], [True] * 4]
