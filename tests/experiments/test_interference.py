"""The points and rows of interference, one short training, and how results are shown."""

import json

import numpy as np
import pytest
from mom_jax.experiments.common.seeds import COMPARED
from mom_jax.experiments.studies import interference

from mom_jax.data import recall
from mom_jax.labels import IGNORE


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_points(scale):
    """All differ, survive JSON, and compare every model with every seed; the first ones compare all models."""
    points = interference.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert len({json.dumps(point) for point in points}) == len(points)
    assert {(p["architecture"], p["seed"]) for p in points} == {(name, seed) for name in COMPARED for seed in range(3)}
    first = points[: len(points) // 3]
    assert {point["architecture"] for point in first} == set(COMPARED)
    assert points[0]["questions"] == points[0]["pairs"] + max(points[0]["distractors"])


def test_padded_rows():
    """The rows of the probe, blanks behind the query."""
    rows = interference.padded(np.random.default_rng(0), 4, 12, pairs=2, distractors=3, vocab=16)
    plain = recall.interference(np.random.default_rng(0), 4, 2, 3, 16)
    assert rows.tokens.shape == (4, 12, 2) and rows.labels.shape == (4, 12)
    np.testing.assert_array_equal(rows.tokens[:, :6], plain.tokens)
    np.testing.assert_array_equal(rows.labels[:, :6], plain.labels)
    assert (rows.tokens[:, 6:] == recall.BLANK).all() and (rows.labels[:, 6:] == IGNORE).all()


def test_run(tmp_path):
    """Attention is soon right about two keys, asked for all or just the first."""
    sizes = {"pairs": 1, "distractors": [0, 1], "vocab": 6, "steps": 200, "questions": 2}
    result = interference.run({**interference.points("tiny")[0], "architecture": "attention", **sizes}, tmp_path)
    assert set(result["tests"]) == {"0", "1"}
    assert result["accuracy"] > 0.9 and result["tests"]["1"] > 0.9
    assert json.loads(json.dumps(result)) == result


def test_table_and_plot(tmp_path):
    """A row for each model and number of distractors, with every seed; the rate that validates best counts."""
    records = []
    for point in interference.points("paper"):
        accuracy = 0.5 + 0.1 * point["seed"] if point["learning_rate"] == interference.PAPER_RATES[1] else 0.1
        tests = {str(count): accuracy for count in point["distractors"]}
        result = {"accuracy": accuracy, "validation": accuracy, "state": 1234, "tests": tests}
        records.append({"point": point, "result": result})
    heading, *rows = interference.table(records)
    assert len(rows) == 5 * len(COMPARED) and all(len(row) == len(heading) for row in rows)
    assert rows[0] == ["0", "MoM", "0.600", "0.500 0.600 0.700", "0.600", "1,234"]
    assert len(interference.findings(records)) == 2
    (picture,) = interference.plot(records[::-1], tmp_path)
    assert picture.stat().st_size > 10_000
