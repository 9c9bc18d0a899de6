"""``train --dry-run``: what a run would be, and nothing written."""

from pathlib import Path

import yaml

from mom_jax.cli.config_file import read_config
from mom_jax.cli.main import main
from mom_jax.cli.train import parse_train
from mom_jax.training.config import TrainConfig


def tree(*folders: Path) -> set[Path]:
    """Everything below."""
    return {path for folder in folders for path in folder.rglob("*")}


def test_dry_run(tiny_run, capsys, tmp_path, monkeypatch):
    """All values as a file that --config reads, sizes, tokens and places as comments; no file is made."""
    monkeypatch.chdir(tmp_path)
    cache = Path(tiny_run[tiny_run.index("--data.cache-dir") + 1])
    line = ["mom-tiny", *tiny_run, "--run-dir", "runs/dry", "--optimizer.learning-rate", "0.002"]
    run, before = parse_train(line).run, tree(tmp_path, cache)
    assert main(["train", *line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert tree(tmp_path, cache) == before
    (tmp_path / "run.yaml").write_text(said, encoding="utf-8")
    assert read_config("run.yaml", TrainConfig()) == run
    assert yaml.safe_load(said)["optimizer"]["learning_rate"] == 0.002
    comments = [text for text in said.splitlines() if text.startswith("# ")]
    step = run.data.batch_size * run.data.sequence_length
    assert any(f"{step:,} a step, {run.steps * step:,} in {run.steps:,} steps" in text for text in comments)
    assert any("would write runs/dry/config.json" in text for text in comments)
    assert any("begins anew in runs/dry" in text for text in comments)


def test_dry_run_of_what_cannot_be(tiny_run, complaint, tmp_path, monkeypatch):
    """What would end the run before its first step is the same single line, with nothing before it."""
    monkeypatch.chdir(tmp_path)
    wrongs = {
        "mesh=": ["--mesh.fsdp", "3"],
        "path=": ["--data.path", "nowhere"],
        "run_dir=": ["--run-dir", __file__],
        f"run_dir={tmp_path / 'run.html'}: would be a folder": ["--run-dir", str(tmp_path / "run.html")],
    }
    for message, wrong in wrongs.items():
        assert complaint("train", "mom-tiny", *tiny_run, *wrong, "--dry-run").startswith(f"mom-jax: {message}")
    assert not any(tmp_path.iterdir())
