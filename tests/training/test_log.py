"""The run's log files."""

import io
import json
import math
import threading

import pytest
from rich.console import Console
from support.damage import full_disk
from tensorboardX.record_writer import RecordWriter

from mom_jax.training.log import RunLog, read_metrics, time_left


def record(step: int) -> dict:
    return {
        "step": step,
        "loss": 2.0,
        "lm_loss": 1.9,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
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


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"step": 2, "lo', "Unterminated string"),
        (b"\0\0\0", "Expecting value"),
        (b"[1, 2]", "the whole is a list, not an object"),
        (b'{"step": 2}', "the object has no 'loss'"),
        (b'{"step": "2", "held_out_loss": 1}', "['step'] is text"),
        (b'{"step": 2, "held_out_loss": 1, "routing_churn": 3}', "the object has no 'loss'"),
    ],
    ids=["half", "NUL", "list", "poor", "text", "scalar"],
)
def test_a_damaged_line_stops_neither_reading_nor_resuming(line, why, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps(record(step)).encode() for step in (1, 3)]
    content = b"\n".join([whole[0], line, whole[1], b""])
    path.write_bytes(content)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3]
    assert f"metrics.jsonl:2 is damaged ({why}" in caplog.text
    with RunLog(tmp_path, 2, 10, Console(file=io.StringIO())):
        pass
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    assert (tmp_path / "damaged-metrics.jsonl").read_bytes() == content


def test_what_is_not_a_number_is_null_in_the_file(tmp_path):
    with RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
        log.training({**record(1), "loss": math.nan, "load": [[math.inf, 0.5]]})
    content = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (content["loss"], content["load"]) == (None, [[None, 0.5]])
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


@pytest.mark.parametrize("method", ["write", "flush"])
def test_a_full_disk_is_met_by_the_one_who_writes(method, tmp_path, monkeypatch):
    """Not by a thread of TensorBoard's writer, whose traceback nobody catches."""
    with pytest.raises(OSError, match="No space left"), RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
        monkeypatch.setattr(RecordWriter, method, full_disk)
        log.training(record(1))
    assert not any("EventLogger" in type(thread).__name__ for thread in threading.enumerate())


def test_a_terminal_shows_one_live_line(tmp_path):
    out = io.StringIO()
    with RunLog(tmp_path, 0, 10, Console(file=out, force_terminal=True, width=120)) as log:
        log.training(record(5))
    shown = out.getvalue()
    assert "step 5/10" in shown and "1,000 tokens/s  0:10 left" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"bad_total": 2}, "left  skipped 2\n"),
        ({"dead_memories": [0, 0]}, "left\n"),
        ({"dead_memories": [0, 1]}, "left  warning: 1 dead memory (layer 1)\n"),
        ({"dead_memories": [2, 1]}, "left  warning: 3 dead memories (layers 0, 1)\n"),
        ({"dead_memories": [1] * 6}, "left  warning: 6 dead memories (layers 0, 1, 2, 3, ...)\n"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_skipped_steps_and_dead_memories_are_shown(tmp_path, more, text, terminal):
    out = io.StringIO()
    with RunLog(tmp_path, 0, 10, Console(file=out, force_terminal=terminal, width=160)) as log:
        log.training({**record(5), **more})
    assert text.rstrip() in out.getvalue() if terminal else out.getvalue().endswith(text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600 * 25 + 62, "25:01:02"), (-3, "0:00")])
def test_time_left(seconds, text):
    assert time_left(seconds) == text
