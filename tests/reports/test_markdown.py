"""The report of a run, from its files alone."""

import dataclasses
import json

import matplotlib.image
import pytest

from mom_jax.errors import InputError
from mom_jax.reports.markdown import write_report
from mom_jax.training.config import get_train_preset

PICTURES = ("loss", "learning_rate", "load", "routing_entropy", "dead_memories", "routing_churn", "gradient_norm")

EVALUATION = {
    "tokens": 12345,
    "loss": 1.25,
    "perplexity": 3.49,
    "bits_per_byte": 1.8034,
    "by_position": [
        {"start": 0, "stop": 16, "tokens": 345, "loss": 2.5},
        {"start": 16, "stop": 32, "tokens": 12000, "loss": 1.2},
    ],
    "load": [[0.5, 0.25, 0.125, 0.125], [0.25] * 4],
    "routing_entropy": [1.0, 1.25],
}


@pytest.fixture
def run_dir(tmp_path):
    config = dataclasses.replace(get_train_preset("mom-tiny"), run_dir=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    records: list[dict] = [
        {
            "step": step,
            "loss": 3 - step / 100,
            "lm_loss": 2.9 - step / 100,
            "aux_loss": 2.0,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "tokens": 2048,
            "load": [[0.4, 0.3, 0.2, 0.1], [0.25] * 4],
            "routing_entropy": [1.2, 1.3],
            "dead_memories": [0, step // 50],
            "bad_total": 3,
            "seconds_per_step": 0.5,
            "tokens_per_second": 4096.0,
        }
        for step in range(10, 110, 10)
    ]
    records.insert(3, {"step": 30, "held_out_loss": 2.85})
    records.insert(6, {"step": 50, "held_out_loss": 2.75, "routing_churn": [0.3, 0.1]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return tmp_path


def test_every_picture_is_drawn_and_shown(run_dir):
    text = write_report(run_dir).read_text(encoding="utf-8")
    for name in PICTURES:
        pixels = matplotlib.image.imread(run_dir / f"{name}.png")
        assert pixels.shape[0] > 300 and pixels.shape[1] > 800
        assert pixels[..., :3].std() > 0.01  # something is drawn
        assert f"({name}.png)" in text
    assert {path.name for path in run_dir.iterdir() if path.name.startswith(".")} == set()


def test_the_numbers_are_the_runs(run_dir):
    text = write_report(run_dir, EVALUATION, extra="| model | bits |").read_text(encoding="utf-8")
    for expected in (
        "| steps | 100 of ",
        "| last training loss | 1.9000 nats per token |",
        "2.7500 nats per token (step 50)",
        "| skipped steps | 3 |",
        "| median speed | 4,096 tokens/s |",
        "| 12,345 | 1.2500 | 3.490 | 1.8034 |",
        "| 16-31 | 12,000 | 1.2000 |",
        "| layer 0 | 0.500 | 0.250 | 0.125 | 0.125 | 1.000 |",
        "| model | bits |",
    ):
        assert expected in text


def test_no_run_and_no_metrics_are_input_errors(run_dir, tmp_path):
    with pytest.raises(InputError, match="run_dir"):
        write_report(tmp_path / "none")
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no metrics yet"):
        write_report(run_dir)
