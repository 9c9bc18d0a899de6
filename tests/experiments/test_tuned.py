"""The learning rate of a model: one rule, on validation rows of a seed that counts for nothing else."""

import math

import numpy as np
import pytest
from mom_jax.experiments.common import synthetic
from mom_jax.experiments.common.rows import Rows
from mom_jax.experiments.common.seeds import cells, rate_cell, trained
from mom_jax.experiments.common.tuned import GRID, TUNING_SEED, kept, tuned

from mom_jax.data.recall import RecallBatch, mqar
from mom_jax.labels import IGNORE
from mom_jax.models.presets import get_preset


def trainer(best, diverges_from=math.inf):
    """Runs whose validation loss is the lowest at ``best``; and what was asked for."""
    asked = []

    def train(runs):
        asked.extend(runs)
        losses = [math.nan if rate >= diverges_from else abs(np.log(rate / best)) for rate, _ in runs]
        return [{"validation_loss": loss, "seed": seed} for loss, (_, seed) in zip(losses, runs, strict=True)]

    return train, asked


def test_the_best_rate_is_chosen_on_a_seed_of_its_own():
    train, asked = trainer(2e-3)
    result = tuned(train, GRID, (0, 1, 2))
    assert result["learning_rate"] == 2e-3 and result["inside"] is True
    assert asked[:4] == [(rate, TUNING_SEED) for rate in GRID] and asked[4:] == [(2e-3, seed) for seed in (0, 1, 2)]
    assert [rate for rate, _ in result["grid"]] == list(GRID) and len(result["runs"]) == 3


def test_runs_of_a_grid_are_asked_nothing_but_the_validation_rows(tmp_path, monkeypatch):
    """Tests of long rows cost as much as the training."""
    asked = []

    def train_together(config, rows, trainings):
        asked.append((set(rows.tests), [each.seed for each in trainings]))
        return [{"validation_loss": abs(np.log(each.learning_rate / 2e-3))} for each in trainings]

    monkeypatch.setattr(synthetic, "train_together", train_together)
    rows = Rows({"task": "any"}, lambda rng, batch: mqar(rng, batch, 8, 2, 16), tests={"longer": mqar})
    train = kept(get_preset("mom-tiny"), rows, synthetic.Training(0.0, 1, 1, 0, 2), tmp_path, together=8)
    first = tuned(train, GRID, (0, 1))
    assert asked == [(set(), [TUNING_SEED] * len(GRID)), ({"longer"}, [0, 1])]
    assert tuned(train, GRID, (0, 1)) == first and len(asked) == 2, "what is kept is not trained again"


@pytest.mark.parametrize(("best", "found"), [(1.6e-2, 1.6e-2), (5e-4, 5e-4), (4e-2, 6.4e-2 / 2)])
def test_the_grid_is_extended_until_the_best_lies_inside(best, found):
    train, _ = trainer(best)
    result = tuned(train, GRID, (0,))
    assert result["learning_rate"] == pytest.approx(found) and result["inside"]


def test_a_rate_at_the_edge_is_said_to_be_there():
    train, _ = trainer(1e3)
    result = tuned(train, GRID, (0,))
    assert not result["inside"] and "at the edge" in rate_cell({"result": result})


def test_rates_that_diverge_are_never_chosen():
    train, _ = trainer(8e-3, diverges_from=4e-3)
    assert tuned(train, GRID, (0,))["learning_rate"] == 2e-3


def test_a_single_rate_is_not_searched():
    train, asked = trainer(1.0)
    result = tuned(train, (1e-2,), (0, 1))
    assert asked == [(1e-2, 0), (1e-2, 1)] and "not searched" in rate_cell({"result": result})


def test_runs_at_chance_are_counted_and_not_averaged():
    runs = [{"accuracy": accuracy, "tests": {"t": accuracy / 2}} for accuracy in (0.9, 0.06, 0.8)]
    record = {"result": {"runs": runs, "chance": 0.05}}
    assert trained(record) == (0.9, 0.8) and trained(record, "t") == (0.45, 0.4)
    mean, each, failures = cells(record)
    assert mean.startswith("0.850 [") and each == "0.900 (0.060) 0.800" and failures == "1 of 3"
    assert cells({"result": {"runs": runs[1:2], "chance": 0.05}})[0] == "–"


def test_rows_of_a_batch_may_have_different_numbers_of_labels():
    """Places hold every label in order, what is left is ignored, and no label is lost in silence."""
    labels = np.array([[IGNORE, 5, IGNORE, 6, 7], [8, IGNORE, IGNORE, IGNORE, IGNORE]])
    made = synthetic._questions(RecallBatch(np.zeros_like(labels), labels), 3)
    assert made["answers"].tolist() == [[5, 6, 7], [8, IGNORE, IGNORE]]
    assert made["places"][0].tolist() == [1, 3, 4] and made["places"][1, 0] == 0
    with pytest.raises(ValueError, match="3 labels, and there are places for 2"):
        synthetic._questions(RecallBatch(np.zeros_like(labels), labels), 2)
