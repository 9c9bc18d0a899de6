"""The run's log files."""

import io
import json

import pytest
from rich.console import Console

from mom_jax.training.log import RunLog, read_metrics, time_left


def record(step: int) -> dict:
    return {
        "step": step,
        "loss": 2.0,
        "load": [[0.25, 0.75]],
        "bad_total": 0,
        "seconds_per_step": 2.0,
        "tokens_per_second": 1000.0,
    }


def test_a_new_sitting_drops_what_came_after_its_checkpoint(tmp_path):
    lines = [json.dumps(record(step)) + "\n" for step in (1, 2, 3)]
    cut = '{"step": 4, "lo'  # by a crash
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + cut, encoding="utf-8")
    out = io.StringIO()
    with RunLog(tmp_path, 2, 10, Console(file=out)) as log:
        log.held_out(3, {"held_out_loss": 1.5, "routing_churn": [0.25]})
        log.training(record(3))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 3]
    assert read_metrics(tmp_path)[2] == {"step": 3, "held_out_loss": 1.5, "routing_churn": [0.25]}
    assert out.getvalue() == "step 3/10  loss 2.0000  held-out 1.5000  1,000 tokens/s  0:14 left\n"
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_terminal_shows_one_live_line(tmp_path):
    out = io.StringIO()
    with RunLog(tmp_path, 0, 10, Console(file=out, force_terminal=True, width=120)) as log:
        log.training(record(5))
    shown = out.getvalue()
    assert "step 5/10" in shown and "1,000 tokens/s  0:10 left" in shown
    assert shown.count("\n") == 1


def test_skipped_steps_are_shown(tmp_path):
    out = io.StringIO()
    with RunLog(tmp_path, 0, 10, Console(file=out)) as log:
        log.training({**record(5), "bad_total": 2})
    assert out.getvalue().endswith("left  skipped 2\n")


@pytest.mark.parametrize(
    ("dead", "text"),
    [
        ([0, 0], "left\n"),
        ([0, 1], "left  warning: 1 dead memory (layer 1)\n"),
        ([2, 1], "left  warning: 3 dead memories (layers 0, 1)\n"),
        ([1] * 6, "left  warning: 6 dead memories (layers 0, 1, 2, 3, ...)\n"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_dead_memories_are_shown(tmp_path, dead, text, terminal):
    out = io.StringIO()
    with RunLog(tmp_path, 0, 10, Console(file=out, force_terminal=terminal, width=160)) as log:
        log.training({**record(5), "dead_memories": dead})
    assert text.rstrip() in out.getvalue() if terminal else out.getvalue().endswith(text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600 * 25 + 62, "25:01:02"), (-3, "0:00")])
def test_time_left(seconds, text):
    assert time_left(seconds) == text
