"""The points of selective copying, and how results are shown."""

import json

import pytest
from mom_jax.experiments.common.architectures import COMPARED
from mom_jax.experiments.studies import selective_copy
from support.made_up import tuned_result


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_points(scale):
    """All differ, survive JSON, and compare every model of every task."""
    points = selective_copy.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert len({json.dumps(point) for point in points}) == len(points)
    assert {point["architecture"] for point in points[: len(COMPARED)]} == set(COMPARED)
    assert all(point["questions"] >= point["items"] for point in points)


def test_run(tmp_path):
    """Attention soon says one item again."""
    sizes = {"length": 4, "items": 1, "vocab": 4, "num_layers": 1, "steps": 150, "questions": 1, "seeds": [0]}
    result = selective_copy.run({**selective_copy.points("tiny")[0], "architecture": "attention", **sizes}, tmp_path)
    assert result["runs"][0]["accuracy"] > 0.9 and result["chance"] == 0.5
    assert json.loads(json.dumps(result)) == result


def test_table_plot_and_contrasts(tmp_path):
    """A row for each model with every seed; the mixture is held against each other one."""
    points = selective_copy.points("paper")
    records = [{"point": point, "result": tuned_result([0.5, 0.6, 0.7])} for point in points]
    heading, *rows = selective_copy.table(records)
    assert len(rows) == len(COMPARED) and all(len(row) == len(heading) for row in rows)
    assert rows[1][0] == "16" and rows[1][3] == "0.500 0.600 0.700" and rows[1][-2:] == ["1,234", "5,678"]
    contrasts = selective_copy.contrasts(records)
    assert len(contrasts) == len(COMPARED) - 1 and {contrast.first for contrast in contrasts} == {"MoM"}
    (picture,) = selective_copy.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
