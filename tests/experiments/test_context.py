"""Text with context: the recipe, the gain, and how results are shown; nothing is trained."""

import math

import pytest
from mom_jax.experiments.common.statistics import judge
from mom_jax.experiments.common.tuned import TUNING_SEED
from mom_jax.experiments.studies import context

POINTS = context.points("small")


def scores(gain: float, bits: float, histories: int = 3) -> dict:
    """A seed's result."""
    nats = math.log(2)
    starts = (0, 16, 32, 64, 128, 256, 512, 1024)
    losses = [3.0, *(bits + gain * (1 - i / 6) for i in range(7))]
    buckets = [{"start": start, "loss": nats * loss} for start, loss in zip(starts, losses, strict=True)]
    costs = {"activated": 100, "parameters": 200, "state": 300}
    gained, history = context.gained({"by_position": buckets}), [bits - gain * i for i in range(histories)]
    return {"bits_per_byte": bits, "by_position": buckets, **gained, "history": history, **costs}


def test_the_recipe():
    """Ten megabytes, read once, in windows that are long enough; the rate is the point's."""
    for point in POINTS[:2]:
        config = context.config_of(point, 2e-3, 0)
        data = config.data
        assert context.config_of(point, 2e-3, TUNING_SEED).steps == config.steps // context.SEARCH
        assert config.steps * data.batch_size * data.sequence_length >= 10e6 and data.sequence_length == context.WINDOW
        assert (config.optimizer.learning_rate, config.seed, data.tokenizer) == (2e-3, 0, "bytes")
    assert len(POINTS[0]["rates"]) >= 4 and len(POINTS[0]["seeds"]) >= 3 and TUNING_SEED not in POINTS[0]["seeds"]


def test_the_gain_is_early_less_late_in_bits():
    assert scores(0.3, 2.0)["gain"] == pytest.approx(0.3)


def test_table_plot_and_contrasts(tmp_path):
    """A gain above zero is told by its interval, one of nothing is undecided."""
    records = []
    for number, point in enumerate(POINTS):
        gains = (0.3, 0.31, 0.32) if number else (-0.01, 0.02, 0.0)
        histories = len(point["history"])
        runs = [scores(gain, 2.0 + 0.1 * number + 0.001 * i, histories) for i, gain in enumerate(gains)]
        records.append({"point": point, "result": {"learning_rate": 2e-3, "inside": True, "grid": [], "runs": runs}})
        records[-1]["result"]["ngrams"] = {"bigram": 3.5, "trigram": 2.5}
    heading, *rows = context.table(records)
    assert len(rows) == len(POINTS) + 2 and all(len(row) == len(heading) for row in rows)
    assert rows[0][0] == "MoM" and rows[-1][:2] == ["trigram", "2.5000"]
    judged = judge(context.contrasts(records))
    assert [one.verdict for one in judged[:2]] == ["undecided", "better"] and len(judged) == 3 * len(POINTS) - 1
    assert {one.verdict for one in judged[2 * len(POINTS) :]} == {"better"}, "fewer bits are better"
    (picture,) = context.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
