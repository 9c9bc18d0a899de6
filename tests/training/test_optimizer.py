"""Schedules by their values, the decay mask by the real model's parameters, AdamW by hand."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.errors import InputError
from mom_jax.models.presets import get_preset
from mom_jax.models.structure import dotted, model_parts
from mom_jax.training.config import OptimizerConfig, TrainConfig
from mom_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mom_jax.training.optimizers import SGD, AdamW, Lion, Muon, Optimizer, OwnOptimizer

SCHEDULES = {  # options, steps of the run, and the rate at some of them
    "cosine": ({"warmup_steps": 10}, 110, {0: 0, 5: 0.5, 10: 1, 60: 0.55, 110: 0.1, 500: 0.1}),
    "wsd": ({"warmup_steps": 10, "schedule": "wsd"}, 100, {0: 0, 5: 0.5, 10: 1, 79: 1, 90: 0.55, 100: 0.1}),
    "cosine shorter than its warmup": ({"warmup_steps": 1000}, 10, {0: 0, 5: 0.5}),
    "wsd shorter than its warmup": ({"warmup_steps": 1000, "schedule": "wsd"}, 10, {0: 0, 5: 0.5}),
}


@pytest.mark.parametrize(("options", "steps", "rates"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(options, steps, rates):
    """Both warm up and end at the minimum; a cosine falls from its peak on, the other is flat until its decay."""
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, decay_fraction=0.2, **options), steps)
    np.testing.assert_allclose([np.asarray(schedule(i)) for i in rates], list(rates.values()), rtol=1e-5)


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


PARAMS = {
    "embeddings": jnp.ones((8, 4)),
    "layers": {
        "router": {"weight": jnp.ones((2, 4, 3))},
        "rule": {"k_proj": jnp.ones((2, 3, 4, 6)), "k_conv1d": jnp.ones((2, 6, 4)), "b_proj": jnp.ones((2, 3, 4, 1))},
    },
}
MATRICES = jax.tree.map(lambda _: False, PARAMS)
MATRICES["layers"]["rule"] |= {"k_proj": True}


def first_update(config: Optimizer, gradients: Any) -> Any:
    config = dataclasses.replace(config, warmup_steps=0, min_learning_rate_ratio=1.0, clip_norm=1e9)
    decays = jax.tree.map(lambda _: True, PARAMS)
    optimizer = make_optimizer(config, learning_rate_schedule(config, 10), decays, MATRICES)
    return jax.jit(lambda: optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0])()


def test_muon_makes_each_memorys_matrix_orthogonal_and_leaves_the_rest_to_adamw():
    keys = iter(jax.random.split(jax.random.key(0), 9))
    gradients = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), PARAMS)
    gradients["layers"]["rule"]["k_proj"] *= jnp.array([1.0, 1e3, 1e-3])[:, None, None]  # sizes of memories do not mix
    decay, rate = 0.5, 0.1
    update = first_update(Muon(learning_rate=rate, weight_decay=decay, newton_schulz_steps=20), gradients)
    matrices = -update["layers"]["rule"]["k_proj"] / rate - decay  # of parameters that are 1
    singular = np.linalg.svd(matrices, compute_uv=False) / (0.2 * np.sqrt(6))
    assert np.all((singular > 0.6) & (singular < 1.3)), "the iteration makes singular values nearly 1"
    adamw = first_update(AdamW(learning_rate=rate, weight_decay=decay), gradients)
    update["layers"]["rule"].pop("k_proj"), adamw["layers"]["rule"].pop("k_proj")
    assert_close(jax.tree.leaves(update), jax.tree.leaves(adamw), 1e-5)


def test_lion_and_sgd_by_hand():
    gradients = jax.tree.map(lambda p: -3.0 * p, PARAMS)
    for config, expected in (
        (Lion(learning_rate=0.1, weight_decay=0.5), -0.1 * (-1 + 0.5)),
        (SGD(learning_rate=0.1, weight_decay=0.5, nesterov=True), -0.1 * (-3 * 1.9 + 0.5)),
        (OwnOptimizer(name="optax:sgd", learning_rate=0.1, options=("momentum=0.9",)), 0.3),
    ):
        for update in jax.tree.leaves(first_update(config, gradients)):
            np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_groups_have_learning_rates_of_their_own():
    rates = ("router=0.1", "gates=2", "embed*=0", "layers.rule.k_conv?d=3")
    update = first_update(SGD(learning_rate=1.0, weight_decay=0.0, rates=rates), PARAMS)
    found = {jax.tree_util.keystr(path): -float(leaf.ravel()[0]) for path, leaf in jax.tree.leaves_with_path(update)}
    assert found == pytest.approx(
        {
            "['embeddings']": 0,
            "['layers']['router']['weight']": 0.1,
            "['layers']['rule']['b_proj']": 2,
            "['layers']['rule']['k_conv1d']": 3,
            "['layers']['rule']['k_proj']": 1,
        }
    )


@pytest.mark.parametrize("rule", ["rwkv7", "mamba3", "gla"])
def test_every_rule_has_a_router_and_gates_and_only_products_are_matrices(rule):
    parts = model_parts(get_preset(f"mom-tiny-{rule}"))
    make_optimizer(SGD(rates=("router=1", "gates=1", "embeddings=1")), lambda _: 1.0, parts.decays)
    matrices = {dotted(path) for path, matrix in jax.tree_util.tree_leaves_with_path(parts.matrices) if matrix}
    assert {"layers.attn.rule.v_proj", "layers.mlp.up_proj.weight"} <= matrices
    assert not [name for name in matrices if name.endswith(("bias", "conv1d", "norm", "x_mix")) or "router" in name]
    assert "embeddings" not in matrices


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Functions that are no optimizers, in the current folder."""
    text = "def text(rate): return 'x'\ndef fails(rate): raise OSError('no luck')\n"
    (tmp_path / "useless.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam"}, "name=adam: did you mean adamw"),
        ({"rates": ("router",)}, "rates=router: expected GROUP=FACTOR"),
        ({"rates": ("router=-1",)}, "rates=router=-1: expected"),
        ({"rates": ("router=nan",)}, "rates=router=nan: expected"),
        ({"rates": ("expert=1",)}, "rates=expert: holds no parameter; write router, gates"),
        ({"name": "no_such:thing"}, "name=no_such:thing: there is no module no_such"),
        ({"name": "optax:no_such"}, "optax has no function no_such"),
        ({"name": "useless:text"}, "returned str, not an Optax transformation"),
        ({"name": "useless:fails"}, "the function failed with OSError: no luck"),
        ({"name": "optax:adam", "options": ("b1",)}, "options=b1: expected name=value"),
        ({"name": "optax:adam", "options": ("beta=1",)}, "the function failed with TypeError"),
    ],
)
def test_what_is_no_optimizer_is_refused_before_the_first_step(changes, message, own):
    with pytest.raises(InputError, match=re.escape(message)):
        config = TrainConfig.from_dict({"optimizer": changes}).optimizer
        make_optimizer(config, lambda _: 1.0, PARAMS)
