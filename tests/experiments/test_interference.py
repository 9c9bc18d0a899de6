"""The points of interference, one short training, and how results are shown."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from mom_jax.experiments.common.architectures import COMPARED
from mom_jax.experiments.common.synthetic import _writes
from mom_jax.experiments.studies import interference
from support.made_up import tuned_result

from mom_jax.ops.routing import RouterOutput


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_points(scale):
    """All differ, survive JSON, and every model is there; a row has room for all answers."""
    points = interference.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert [point["architecture"] for point in points] == list(COMPARED)
    assert points[0]["questions"] == points[0]["pairs"] + max(points[0]["distractors"])


def test_both_kinds_are_asked(tmp_path):
    """Each number of distractors of each kind."""
    sizes = {"pairs": 1, "distractors": [0, 1], "vocab": 32, "steps": 25, "questions": 2, "test_rows": 64}
    point = {**interference.points("tiny")[0], "architecture": "attention", "seeds": [0], **sizes}
    result = interference.run(point, tmp_path)
    (run,) = result["runs"]
    assert set(run["tests"]) == {"same 0", "other 0", "same 1", "other 1"} and "kinds" not in run
    assert all(0 <= accuracy <= 1 for accuracy in run["tests"].values()) and result["chance"] == 0.5
    assert json.loads(json.dumps(result)) == result


def test_writes_are_counted_by_kind_and_memory():
    """Of pairs alone: queries and blanks are no writes."""
    kinds, first = 2, 10
    tokens = np.array([[[3, 7, 10], [4, 8, 11], [3, 0, 10], [0, 0, 0]]], np.int32)
    chosen = jnp.asarray([[[[0, 2], [1, 2], [0, 1], [0, 1]]]])
    router = RouterOutput(jnp.zeros((1, 1, 4, 3)), jnp.ones((1, 1, 4, 2)), chosen, jnp.zeros((1, 1, 3)))
    shares = _writes(router, jnp.asarray(tokens), first, kinds)
    np.testing.assert_allclose(shares[0], [[0.25, 0, 0.25], [0, 0.25, 0.25]])


def kinds_to(memories):
    """Shares of writes where the i-th kind goes to these of four memories."""
    joint = np.zeros((4, 4))
    for kind, chosen in enumerate(memories):
        joint[kind, list(chosen)] = 1
    return [(joint / joint.sum()).tolist()]


@pytest.mark.parametrize(
    ("memories", "bits"),
    [
        ([(0, 1)] * 4, 0),
        ([(0, 1), (2, 3)] * 2, 1),
        ([(0,), (1,), (2,), (3,)], 2),
        ([(0, 1), (1, 2), (2, 3), (0, 3)], 1),
    ],
)
def test_information(memories, bits):
    """None where all kinds go the same way; all where a memory tells the kind."""
    record = {"result": tuned_result([0.9], kinds=kinds_to(memories))}
    assert interference.information(record) == pytest.approx([bits], abs=1e-9)
    assert interference.information({"result": tuned_result([0.9])}) == []


def test_what_another_kind_spares(tmp_path):
    """Of each seed the difference, none where it stayed at chance; the mixture's beside the others'."""
    records = []
    for point in interference.points("small"):
        tests = tuple(f"{kind} {count}" for count in point["distractors"] for kind in ("same", "other"))
        result = tuned_result([0.5, 0.6, 0.02, 0.7], tests=tests, kinds=kinds_to([(0, 1), (2, 3)] * 2))
        for run in result["runs"]:
            run["tests"]["other 12"] += 0.25 if point["architecture"] == "mom" else 0.0
        records.append({"point": point, "result": result})
    assert interference.spared(records[0]) == pytest.approx((0.25,) * 3)
    contrasts = interference.contrasts(records)
    assert len(contrasts) == 2 * len(COMPARED) - 1 and contrasts[0].theirs == (0.0,) * 3
    heading, *rows = interference.table(records)
    assert len(rows) == 6 * len(COMPARED) and all(len(row) == len(heading) for row in rows)
    assert rows[0][1] == "0, the same kind" and "(0.020)" in rows[0][3] and rows[0][4] == "1 of 4"
    assert "1.000 [1.000, 1.000] bits" in interference.findings(records)[0]
    (picture,) = interference.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
