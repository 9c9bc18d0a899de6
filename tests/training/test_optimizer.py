"""Schedules by their values, the decay mask by the real model's parameters, AdamW by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax.models.presets import get_preset
from mom_jax.models.structure import model_parts
from mom_jax.training.config import OptimizerConfig
from mom_jax.training.optimizer import learning_rate_schedule, make_optimizer


def test_cosine_warms_up_peaks_and_ends_at_the_minimum():
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10), 110)
    np.testing.assert_allclose(
        [np.asarray(schedule(i)) for i in (0, 5, 10, 60, 110, 500)], [0, 0.5, 1, 0.55, 0.1, 0.1], rtol=1e-5
    )


def test_wsd_is_flat_until_its_decay():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="wsd", decay_fraction=0.2)
    schedule = learning_rate_schedule(config, 100)
    np.testing.assert_allclose(
        [np.asarray(schedule(i)) for i in (0, 5, 10, 79, 90, 100)], [0, 0.5, 1, 1, 0.55, 0.1], rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_run_shorter_than_its_warmup_still_has_a_schedule(kind):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=1000, schedule=kind), 10)
    np.testing.assert_allclose([np.asarray(schedule(i)) for i in (0, 5)], [0, 0.5], rtol=1e-5)


def test_decay_spares_exactly_norms_and_decay_parameters():
    paths = jax.tree_util.tree_leaves_with_path(model_parts(get_preset("mom-tiny")).decays)
    spared = {jax.tree_util.keystr(path) for path, decays in paths if not decays}
    assert spared == {
        "['layers']['attn']['output']['norm']",
        "['layers']['attn']['rule']['A_log']",
        "['layers']['attn']['rule']['dt_bias']",
        "['layers']['attn_norm']['weight']",
        "['layers']['mlp_norm']['weight']",
        "['norm']['weight']",
    }
    assert len(paths) > 2 * len(spared)


def test_one_update_clips_and_decays_as_written_down():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, min_learning_rate_ratio=1.0, eps=1e-3)
    params = {"proj": jnp.array([2.0]), "norm": jnp.array([2.0])}
    gradients = {"proj": jnp.array([3.0]), "norm": jnp.array([4.0])}  # norm 5, clipped to 1
    optimizer = make_optimizer(config, learning_rate_schedule(config, 10), {"proj": True, "norm": False})
    updates: Any = optimizer.update(gradients, optimizer.init(params), params)[0]
    # The first Adam step is g / (|g| + eps), g the clipped gradient.
    np.testing.assert_allclose(updates["proj"], [-0.1 * (0.6 / 0.601 + 0.5 * 2.0)], rtol=1e-5)
    np.testing.assert_allclose(updates["norm"], [-0.1 * (0.8 / 0.801)], rtol=1e-5)
