"""Needles by length: the points, how results are shown, and what guessing gives; nothing is trained."""

import json

import numpy as np
import pytest
from mom_jax.experiments.common.architectures import COMPARED
from mom_jax.experiments.studies import needles
from support.made_up import tuned_result

from mom_jax.data.needles import NEEDLES, needle_rows
from mom_jax.data.tokenizer_kinds import ByteTokenizer
from mom_jax.labels import IGNORE


@pytest.mark.parametrize("scale", ["tiny", "medium"])
def test_points(scale):
    """JSON-ready; every model of every task; as many questions as an answer has bytes."""
    points = needles.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert {(p["needle"], p["architecture"]) for p in points} == {
        (needle, name) for needle in ({"single"} if scale == "tiny" else NEEDLES) for name in COMPARED
    }
    for point in points[:: len(COMPARED)]:
        _, labels = needle_rows(point["needle"], np.random.default_rng(1), 2, ByteTokenizer(), 1024)
        assert ((labels != IGNORE).sum(1) == point["questions"]).all()


def test_guessing():
    """A space and four digits; letters count as digits do."""
    assert needles.guessing("single") == pytest.approx(1 / 5 + 4 / 5 / 10)
    assert 0.1 < needles.guessing("common_words") < needles.guessing("multi_query") < 0.5


def test_table_plot_and_contrasts(tmp_path):
    lengths = tuple(map(str, needles.LENGTHS))
    records = [{"point": p, "result": tuned_result([0.5, 0.6, 0.7], tests=lengths)} for p in needles.points("medium")]
    heading, *rows = needles.table(records)
    assert len(rows) == 6 * len(COMPARED) * len(lengths) and all(len(row) == len(heading) for row in rows)
    assert rows[0][:3] == ["single", "512", "MoM"] and len(needles.contrasts(records)) == 12 * (len(COMPARED) - 1)
    (picture,) = needles.plot(records, tmp_path)
    assert picture.stat().st_size > 10_000
