"""When and with what a run was trained."""

import re

import jax

from mom_jax.training.sittings import read_sittings, record_sitting


def test_each_sitting_is_a_line(tmp_path):
    assert read_sittings(tmp_path) == []
    record_sitting(tmp_path, 0, "1 cpu")
    record_sitting(tmp_path, 20, "8 TPU v4", ["changed since: steps 10 -> 20"])
    with (tmp_path / "sittings.jsonl").open("a", encoding="utf-8") as file:
        file.write('null\n{"date": "cut')
    first, second = read_sittings(tmp_path)
    assert (first["step"], first["devices"], second["step"], second["devices"]) == (0, "1 cpu", 20, "8 TPU v4")
    assert (first["notes"], second["notes"]) == ([], ["changed since: steps 10 -> 20"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", first["date"])
    assert first["versions"]["jax"] == jax.__version__ and {"python", "mom-jax", "flax"} <= first["versions"].keys()
