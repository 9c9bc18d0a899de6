"""The examples of docs/training.md: each is run, and one run uses what all of them hand over."""

import inspect
import json
import re
from pathlib import Path

from mom_jax import runs
from mom_jax.training.config import TrainConfig
from mom_jax.training.log import read_metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_examples_hand_over_parts_that_a_run_takes(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    config = make_config("tuned", steps=2, eval_every=2).anchored()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    real, signature, parts = runs.train, inspect.signature(runs.train), {}

    def note(*args, **kwargs):
        assert isinstance(args[0], TrainConfig)
        signature.bind(*args, **kwargs)
        parts.update(kwargs)

    monkeypatch.setattr(runs, "train", note)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    for block in blocks:
        assert len(block.splitlines()) <= 15
        exec(block, names)
    assert set(parts) == {"callbacks", "logger", "optimizer", "loss", "batches", "held_out"}
    assert real(names["config"], **parts).finished
    records = read_metrics(tmp_path / "tuned")
    assert [sorted(r.keys() & {"size", "held_out_loss"}) for r in records] == [["size"], ["size"], ["held_out_loss"]]
    said = capsys.readouterr().out
    assert "1 train 5." in said and "2 held_out 5." in said and "the sitting ends" in said
    assert "step 2 is safe in" in said
