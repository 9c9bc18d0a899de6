"""The points of selective copying, one short training, and how results are shown."""

import json

import pytest
from mom_jax.experiments.common.seeds import COMPARED
from mom_jax.experiments.studies import selective_copy


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_points(scale):
    """All differ, survive JSON, and compare every model with every seed; the first ones compare all models."""
    points = selective_copy.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert len({json.dumps(point) for point in points}) == len(points)
    assert {(p["architecture"], p["seed"]) for p in points} == {(name, seed) for name in COMPARED for seed in range(3)}
    assert {point["architecture"] for point in points[: len(points) // 3]} == set(COMPARED)
    assert all(point["questions"] >= point["items"] for point in points)


def test_run(tmp_path):
    """Attention soon says one item again."""
    sizes = {"length": 4, "items": 1, "vocab": 4, "num_layers": 1, "steps": 200, "questions": 1}
    result = selective_copy.run({**selective_copy.points("tiny")[0], "architecture": "attention", **sizes}, tmp_path)
    assert result["accuracy"] > 0.9
    assert json.loads(json.dumps(result)) == result


def test_table_and_plot(tmp_path):
    """A row for each model with every seed; the rate that validates best counts."""
    records = []
    for point in selective_copy.points("paper"):
        accuracy = 0.5 + 0.1 * point["seed"] if point["learning_rate"] == selective_copy.PAPER_RATES[1] else 0.1
        result = {"accuracy": accuracy, "validation": accuracy, "state": 1234, "activated": 5678}
        records.append({"point": point, "result": result})
    heading, *rows = selective_copy.table(records)
    assert len(rows) == len(COMPARED) and all(len(row) == len(heading) for row in rows)
    assert rows[1] == ["16", "single memory", "0.600", "0.500 0.600 0.700", "1,234", "5,678"]
    assert selective_copy.findings(records)[0].startswith("16 items: MoM (0.6) is level with single memory")
    (picture,) = selective_copy.plot(records[::-1], tmp_path)
    assert picture.stat().st_size > 10_000
