"""Throughput of training: its points, one very small step, table and plot."""

import dataclasses
import json
import math

import pytest
from mom_jax.experiments.studies import throughput

from mom_jax.models.config import MoMConfig
from mom_jax.training.config import TrainConfig

SMALL = MoMConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=4, intermediate_size=0,
                  memory_rule="retnet", use_short_conv=False)  # fmt: skip


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_points_are_distinct(scale):
    points = [json.dumps(point) for point in throughput.points(scale)]
    assert len(set(points)) == len(points) == 1 + len(throughput.MIXTURES)
    assert json.loads(points[0])["architecture"] == "single"


def test_a_very_small_step(monkeypatch, tmp_path):
    """Random tokens of a vocabulary of 16: the loss begins near its logarithm."""
    monkeypatch.setattr(throughput, "get_train_preset", lambda name: TrainConfig(model=SMALL))
    point = {**throughput.points("tiny")[1], "batch_size": 2, "length": 16, "calls": 1}
    result = throughput.run(point, tmp_path)
    json.dumps(result)
    assert result["tokens_per_second"] == pytest.approx(32 / result["step_seconds"])
    assert result["compile_seconds"] > 0 and abs(result["loss"] - math.log(16)) < 0.5
    assert result["parameters"] > result["activated"] > 0


def test_rows_grow_with_the_memories_of_a_token():
    """k + 1 rows and the padding, of less than a chunk for each routed memory."""
    rows = {}
    for point in throughput.points("paper"):
        mixture = point["architecture"] == "mom"
        sizes = {"mixture": mixture, "num_memories": point["memories"], "topk": point["topk"]}
        rows[mixture, point["memories"], point["topk"]] = throughput.rows_per_token(
            dataclasses.replace(SMALL, **sizes), 2048
        )
    assert rows.pop((False, 1, 1)) == 1
    assert all(k + 1 <= value < k + 1 + 64 * m / 2048 for (_, m, k), value in rows.items())


def test_table_and_plot(tmp_path):
    """Ratios are to the single memory, and left out without it."""
    records = []
    for point in throughput.points("tiny"):
        result = {"tokens_per_second": 3000 / point["topk"], "compile_seconds": 9.0, "rows_per_token": 2.0}
        records.append({"point": point, "result": {**result, "parameters": 2000, "activated": 1000}})
    heading, *rows = throughput.table(records)
    assert all(len(row) == len(heading) for row in rows)
    assert rows[0][:5] == ["single memory", "1", "1", "3,000", "1.00"]
    assert rows[3][:5] == ["MoM, top-2", "4 + 1", "3", "1,500", "0.50"]
    assert throughput.table(records[1:])[1][4] == ""
    (picture,) = throughput.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
    assert throughput.EXPERIMENT.draw(records[:1], tmp_path)
