"""What counts as a spike, step by step."""

import jax.numpy as jnp
import pytest

from mom_jax.errors import InputError
from mom_jax.training.config import SpikesConfig
from mom_jax.training.spikes import first_statistics, judge


def judged(losses, config, norms=None):
    statistics, found = first_statistics(config), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        spike, statistics = judge(statistics, jnp.array([loss, norm]), config)
        found.append(bool(spike))
    return found, statistics


def test_nothing_is_far_before_the_window_is_full():
    found, _ = judged([1.0, 50.0, 1.0, 1.1, 0.9, 80.0], SpikesConfig(skip=True, window=4))
    assert found == [False] * 6, "50 is among the four steps that the deviation is taken of"
    found, _ = judged([1.0, 1.1, 0.9, 1.0, 50.0], SpikesConfig(skip=True, window=4))
    assert found == [False] * 4 + [True]


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_second_spike_is_found_and_a_new_level_accepted(which):
    usual = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 1.0]
    values = [*usual, 9.0, 1.0, 9.0, *[3.0] * 12]
    losses, norms = (values, [1.0] * len(values)) if which == "loss" else ([1.0] * len(values), values)
    found, statistics = judged(losses, SpikesConfig(skip=True, window=8), norms)
    assert found[8] and found[10] and not found[9] and not any(found[:8])
    assert not found[-1], "a level that stays is no spike for ever"
    assert int(statistics["total"]) == sum(found)


def test_what_falls_or_is_not_finite_is_no_spike():
    config = SpikesConfig(skip=True, window=2)
    found, statistics = judged([2.0, 2.0, 0.1, float("nan"), 2.0], config)
    assert found == [False] * 5
    assert jnp.isfinite(statistics["latest"]).all() and int(statistics["count"]) == 4


def test_a_loss_that_hardly_varies_may_vary_by_a_thousandth_of_itself():
    found, _ = judged([2.0] * 4 + [2.01, 2.05], SpikesConfig(skip=True, window=4))
    assert found == [False] * 4 + [False, True]


def test_none_is_kept_where_nobody_asks():
    assert first_statistics(SpikesConfig()) is None
    assert SpikesConfig(rewind=3).active
    with pytest.raises(InputError, match=r"spikes\.factor=0"):
        SpikesConfig(factor=0)
