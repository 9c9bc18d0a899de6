"""The models that recall compares, and one short training of each kind of task."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mom_jax.experiments.common.architectures import ARCHITECTURES, architecture, mixture
from mom_jax.experiments.common.recall import recalled
from mom_jax.experiments.common.rows import Rows
from mom_jax.experiments.common.synthetic import Training, recall_hidden_states, train_together
from mom_jax.experiments.studies import mqar
from support.made_up import tuned_result

from mom_jax.data.recall import fused_mqar
from mom_jax.data.recall import mqar as make_mqar
from mom_jax.models.accounting import account, total
from mom_jax.models.structure import build_model

POINTS = [*mqar.points("tiny")[:1], mqar.points("paper")[0]]


@pytest.mark.parametrize("point", POINTS, ids=["tiny", "paper"])
def test_what_is_equal(point):
    """State of the memories in floats, and parameters that a token activates."""
    config = mixture(point)
    costs = {name: total(account(architecture(name, config), 64)) for name in ARCHITECTURES}
    one = config.head_dim * config.head_v_dim * 4 * config.num_hidden_layers

    def state(name):  # of the matrices alone: without the rows of short convolutions and the count of tokens
        made = architecture(name, config)
        return made.num_heads * made.head_dim * made.head_v_dim * 4 * made.num_hidden_layers

    assert state("single") == state("equal-parameters") == one
    assert state("equal-active") == 3 * one
    totals = {state(name) for name in ("equal-total", "equal-total-keys", "equal-total-heads")}
    assert totals == {(config.num_memories + 1) * one}
    assert costs["single"].activated < costs["equal-parameters"].activated
    step = 3 * config.hidden_size * config.num_hidden_layers  # parameters of one more channel of the MLP
    assert abs(costs["equal-parameters"].activated - costs["mom"].activated) <= step / 2
    assert abs(costs["equal-all-parameters"].parameters - costs["mom"].parameters) <= step / 2
    assert set(mqar.MODELS) == {point["architecture"] for point in mqar.points("tiny")}


def test_fused_tokens_are_sums_of_embeddings():
    """A token of key and value is read as the sum of the two; a plain one as itself."""
    model = build_model(mixture(POINTS[0]), 0)
    table = np.asarray(model.embeddings[...])
    fused, plain = np.array([[[3, 40], [5, 0]]], np.int32), np.array([[3, 40]], np.int32)
    summed = jnp.asarray([[table[3] + table[40], table[5] + table[0]]])

    @jax.jit
    def both(fused, plain):
        return (
            (recall_hidden_states(model, fused)[0], model.hidden_states(inputs_embeds=summed)[0]),
            (recall_hidden_states(model, plain)[0], model.hidden_states(plain)[0]),
        )

    for ours, expected in both(fused, plain):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def learned():
    """Two pairs from few tokens: learned in a minute by a mixture."""
    config = mixture({**POINTS[0], "vocab": 16, "hidden_size": 16, "num_memories": 2})
    make = functools.partial(fused_mqar, length=8, pairs=2, vocab=16)
    return train_together(config, Rows({}, make), [Training(2e-2, 200, 32, 0, questions=3, test_rows=128)])[0]


def test_a_mixture_learns_to_recall(learned):
    """Far above chance, which is one in eight, and it says what it cost."""
    assert learned["accuracy"] > 0.6
    assert learned["curve"][-1] == [learned["steps"], learned["validation"]]
    assert learned["curve"][-1][1] > learned["curve"][0][1] or learned["steps"] <= 100
    np.testing.assert_allclose(np.sum(learned["load"], -1), 1, rtol=1e-5)
    assert learned["parameters"] >= learned["activated"] > 0 and learned["state"] > 0


def test_training_ends_when_solved():
    """Validation decides; two keys with one value each are soon known by heart."""
    config = architecture("attention", mixture({**POINTS[0], "vocab": 4, "hidden_size": 16}))
    make = functools.partial(make_mqar, length=4, pairs=1, vocab=4)
    training = Training(2e-2, 2000, 32, 0, 1, test_rows=64, look_every=25)
    (result,) = train_together(config, Rows({}, make), [training])
    assert result["steps"] < 2000 and result["accuracy"] >= 0.99


def test_several_rates_and_seeds_in_one_program():
    """Each as if it were trained alone."""
    config = architecture("attention", mixture({**POINTS[0], "vocab": 8, "hidden_size": 16}))
    rows = Rows({}, functools.partial(fused_mqar, length=4, pairs=2, vocab=8))
    asked = [Training(rate, 20, 16, seed, questions=2, test_rows=64) for rate, seed in ((2e-2, 0), (1e-2, 1))]
    together = train_together(config, rows, asked)
    for one, training in zip(together, asked, strict=True):
        (alone,) = train_together(config, rows, [training])
        np.testing.assert_allclose(one["loss"], alone["loss"], rtol=1e-4)
    assert together[0]["loss"] != together[1]["loss"]


def test_lessons_have_fewer_pairs(tmp_path, monkeypatch):
    """Rows of training have any number of them, those of test and validation all; both are told apart where kept."""
    asked = {}
    monkeypatch.setattr("mom_jax.experiments.common.recall.learned", lambda point, config, rows, *_, **__: rows)
    for point in mqar.points("small")[0], {**mqar.points("paper")[0], "pairs": 8}:
        rows = recalled(mixture(point), point, tmp_path)
        rng, read = np.random.default_rng(0), rows.lessons or rows.make
        labels = np.concatenate([read(rng, 4).labels for _ in range(40)])
        asked[json.dumps(rows.facts)] = {*(labels >= 0).sum(-1).tolist()}
        assert (rows.make(rng, 4).labels >= 0).sum(-1).tolist() == [8] * 4
    assert list(asked.values()) == [{1, 2, 4, 8}, {8}]


def test_table_plot_and_contrasts(tmp_path):
    """Every seed is shown; the mixture is held against every other model of its task."""
    records = [{"point": point, "result": tuned_result([0.5, 0.6])} for point in mqar.points("small")]
    heading, *rows = mqar.table(records)
    assert len(rows) == len(mqar.MODELS) and all(len(row) == len(heading) for row in rows)
    assert rows[0][:4] == ["mqar 32", "8", "64", "MoM"] and rows[0][5] == "0.500 0.600"
    contrasts = mqar.contrasts(records)
    assert len(contrasts) == len(mqar.MODELS) - 1
    assert {contrast.questions for contrast in contrasts} == {(), ("active-state",), ("total-state",), ("parameters",)}
    (picture,) = mqar.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
