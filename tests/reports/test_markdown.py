"""The report of a run, from its files alone."""

import json

import matplotlib.image
import pytest
from support.made_up import EVALUATION, train_record, write_run

from mom_jax.errors import InputError
from mom_jax.evals.results import add_evaluation
from mom_jax.reports.markdown import write_report
from mom_jax.reports.words import TWO_LOSSES

PICTURES = ("loss", "learning_rate", "load", "routing_entropy", "dead_memories", "routing_churn", "gradient_norm")


@pytest.fixture
def run_dir(tmp_path):
    records = [train_record(step, 2.9 - step / 100, dead_memories=[0, step // 50]) for step in range(10, 110, 10)]
    records.insert(3, {"step": 30, "held_out_loss": 2.85})
    records.insert(6, {"step": 50, "held_out_loss": 2.75, "routing_churn": [0.3, 0.1]})
    return write_run(tmp_path, records)


def test_every_picture_is_drawn_and_shown(run_dir):
    text = write_report(run_dir).read_text(encoding="utf-8")
    for name in PICTURES:
        pixels = matplotlib.image.imread(run_dir / f"{name}.png")
        assert pixels.shape[0] > 300 and pixels.shape[1] > 800
        assert pixels[..., :3].std() > 0.01  # something is drawn
        assert pixels[0, 0, 3] == 0 and (pixels[..., 3] == 0).mean() > 0.5, "the page shows through"
        assert f"({name}.png)" in text
    assert {path.name for path in run_dir.iterdir() if path.name.startswith(".")} == set()


def test_the_numbers_are_the_runs(run_dir):
    (run_dir / "eval.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    text = write_report(run_dir).read_text(encoding="utf-8")
    for expected in (
        "| steps | 100 of ",
        "| last training loss | 1.9000 nats per token |",
        "2.7500 nats per token (step 50, at most 64 windows of 256 tokens)",
        "| skipped steps | 3 |",
        "| median speed | 4,096 tokens/s |",
        "| 20 | – | – | 12,345 | 1.2512 | 3.494 | 1.8051 |",
        "| 16–255 | 12,000 | 1.2239 |",
        "| 0 | 0.511 | 0.252 | 0.126 | 0.111 | 1.013 |",
    ):
        assert expected in text


def test_no_run_and_no_metrics_are_input_errors(run_dir, tmp_path):
    with pytest.raises(InputError, match="run_dir"):
        write_report(tmp_path / "none")
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no metrics yet"):
        write_report(run_dir)


@pytest.mark.parametrize("content", [b"{\n[]\n", b"\xff\n", b'{"step": 1}\n' * 3], ids=["json", "bytes", "form"])
def test_metrics_that_are_damaged_throughout(content, run_dir):
    """A finished run cannot be told to train for a few steps."""
    (run_dir / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError) as error:
        write_report(run_dir)
    for part in ("metrics=", "metrics.jsonl: holds no record that can be read", "larger --steps", "not affected"):
        assert part in str(error.value)


def test_evaluations_of_several_sizes_stand_beside_each_other(run_dir):
    """The small one replaces nothing: neither the scores of all text nor what n-gram models reach."""
    whole = {**EVALUATION, "windows": 90, "windows_in_all": 90, "baselines": {"bigram": 2.0}}
    add_evaluation(run_dir, whole, pytest.fail)
    add_evaluation(run_dir, {**whole, "windows": 16, "loss": 1.5, "baselines": {}}, pytest.fail)
    text = write_report(run_dir).read_text(encoding="utf-8")
    assert text.index("| 20 | – | all | 12,345 | 1.2512 |") < text.index("| 20 | – | 16 of 90 | 12,345 | 1.5000 |")
    assert "| bigram | 2.0000 | 0.1949 bits (9.7%) lower |" in text and TWO_LOSSES in text
    assert "The following is about the first row: step 20, all scored." in text


def test_a_sample_is_shown_as_it_is(run_dir):
    sample = {"prompt": "def f(", "text": "x):\n    *1* | <b>", "temperature": 0.7}
    add_evaluation(run_dir, {**EVALUATION, "sample": sample}, pytest.fail)
    assert "    def f(x):\n        *1* | <b>\n" in write_report(run_dir).read_text(encoding="utf-8")


def test_what_is_damaged_is_left_out_and_said(run_dir):
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 110, "loss"\n[1]\n{"step": 100, "held_out_loss": null, "routing_churn": [0, 0, 1]}\n')
    (run_dir / "eval.json").write_text("[]", encoding="utf-8")
    text = write_report(run_dir).read_text(encoding="utf-8")
    assert text.count("metrics.jsonl:") == 3 and "eval.json: is damaged" in text
    assert "| last training loss | 1.9000 nats" in text and "nan nats per token (step 100" in text
