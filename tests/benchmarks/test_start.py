"""``mom-jax bench start``: what a start tells, and what the table makes of it."""

import json
import sys
from pathlib import Path

import pytest

from mom_jax.benchmarks import start

ROOT = Path(__file__).resolve().parents[2]


def test_a_start_tells_its_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("MOM_JAX_START", str(tmp_path / "told.json"))
    monkeypatch.setattr(sys, "argv", ["start", "-c", "import jax\njax.jit(lambda x: 3 * x + 1.25)(2.0)"])
    assert start.main() == 0
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["programs"] == 1 and told["tracing"] > 0 and told["compiling"] > 0


def test_the_example_is_the_readmes():
    assert start.EXAMPLE in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_faster_of_the_later_starts_counts(monkeypatch):
    """And a run that starts again has something to do: its last checkpoint, or all of it, is gone."""
    seconds, seen = iter([10.0, 4.0, 3.0] * len(start.STARTS)), []

    def stand_in(place, cache, words):
        run = place / words[-1]
        if words[0] == "train":
            seen.append((run / "checkpoints/2").is_dir() - (run / "checkpoints/4").is_dir())
            (run / "checkpoints/2").mkdir(parents=True, exist_ok=True)
            (run / "checkpoints/4").mkdir(exist_ok=True)
        return start.Start(0 if words[0] == "data" else next(seconds), 2.0, 7, 1.0, 0.5)

    monkeypatch.setattr(start, "_start", stand_in)
    rows = list(start.start_table())[2:]
    assert len(rows) == len(start.STARTS) and all("| 0.30 (1.00) |" in row for row in rows)
    assert seen == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("spans,total", [([], 0), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 4), (1, 2)], 5)])
def test_seconds_count_once(spans, total):
    assert start.covered(spans) == total
