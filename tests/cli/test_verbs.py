"""The verbs on a real, tiny run: train, stop, resume, evaluate, generate, demonstrate."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mom_jax.cli.demo import comparison
from mom_jax.cli.main import main
from mom_jax.errors import install
from mom_jax.training.config import TrainConfig
from mom_jax.training.log import read_metrics


@pytest.fixture(scope="module")
def interrupted(tiny_run, tmp_path_factory) -> tuple[Path, int, str]:
    """A run that got SIGTERM after its first step: its folder, exit status and output."""
    run_dir = tmp_path_factory.mktemp("run") / "first"
    command = [sys.executable, "-m", "mom_jax", "train", "mom-tiny", *tiny_run, "--run-dir", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGTERM)
    return run_dir, process.returncode, "".join(lines)


@pytest.fixture(scope="module")
def trained(interrupted, tiny_run) -> Path:
    """That run, resumed to its end."""
    run_dir, _, _ = interrupted
    assert main(["train", "mom-tiny", *tiny_run, "--run-dir", str(run_dir)]) == 0
    return run_dir


def test_sigterm_saves_and_exits_cleanly(interrupted):
    run_dir, status, output = interrupted
    assert status == 0
    assert "by SIGTERM; saved in" in output and "run the same command again to resume" in output
    (step,) = (int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert 1 <= step < 80
    assert "Traceback" not in output


def test_the_same_command_resumes_to_the_end(trained):
    steps = [record["step"] for record in read_metrics(trained) if "loss" in record]
    assert steps == list(range(1, 81))
    assert TrainConfig.from_file(trained / "config.json").steps == 80
    assert "| steps | 80 of 80 |" in (trained / "report.md").read_text(encoding="utf-8")


def test_eval_prints_and_writes_scores(trained, capsys):
    assert main(["eval", str(trained), "--sequence-length", "48"]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((trained / "eval.json").read_text(encoding="utf-8"))
    assert scores["step"] == 80 and scores["sequence_length"] == 48
    assert 0 < scores["bits_per_byte"] < 8
    assert f"{scores['bits_per_byte']:.4f}" in shown and "memory 3" in shown
    assert f"{scores['loss']:.4f}" in (trained / "report.md").read_text(encoding="utf-8")


def test_eval_scores_every_held_out_token_once_whatever_the_window(trained):
    tokens = []
    for length in (40, 64):
        assert main(["eval", str(trained), "--sequence-length", str(length)]) == 0
        tokens.append(json.loads((trained / "eval.json").read_text(encoding="utf-8"))["tokens"])
    assert tokens[0] == tokens[1] > 1000


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_eval_runs_tasks(trained, tmp_path, capsys):
    """A table, and tasks.json; a second evaluation adds to it."""
    row = json.dumps({"question": "a b", "choices": [" c", " d"]}) + "\n"
    (tmp_path / "data.jsonl").write_text(3 * row, encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK.replace("PLACE", str(tmp_path / "data.jsonl")), encoding="utf-8")
    line = f"eval {trained} --tasks tiny_choice --include-path {tmp_path}".split()
    assert main(line) == 0
    assert "tiny_choice" in capsys.readouterr().out
    results = json.loads((trained / "tasks.json").read_text(encoding="utf-8"))
    assert results["tasks"]["tiny_choice"]["samples"] == 3 and results["tasks"]["tiny_choice"]["step"] == 80
    assert main([*line, "--limit", "2"]) == 0
    assert json.loads((trained / "tasks.json").read_text(encoding="utf-8"))["tasks"]["tiny_choice"]["samples"] == 2


def test_eval_without_the_harness_or_a_checkpoint(tmp_path, capsys, monkeypatch):
    assert main(["eval", str(tmp_path), "--tasks", "recall_fda"]) == 2
    assert capsys.readouterr().err.startswith(f"mom-jax: run={tmp_path}: holds no checkpoint")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["eval", str(tmp_path), "--tasks", "recall_fda"]) == 2
    assert f"needs lm-evaluation-harness: {install('eval')}" in capsys.readouterr().err


def test_generate_streams_the_same_text_for_the_same_seed(trained, capsys):
    texts = []
    for _ in range(2):
        assert main(["generate", str(trained), "--prompt", "abc é", "--max-new-tokens", "20", "--seed", "3"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("abc é") and len(texts[0]) > len("abc é\n")


def test_training_another_config_there_is_one_line(trained, tiny_run, capsys):
    command = ["train", "mom-tiny", *tiny_run, "--run-dir", str(trained), "--seed", "5"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "another config: seed (there 0, now 5)" in error and error.count("\n") == 1


def test_damage_is_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (newest,) = (path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name == "80")
    (newest / "params" / "_METADATA").unlink()
    for verb in (["eval", str(tmp_path / "run")], ["generate", str(tmp_path / "run"), "--prompt", "a"]):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert "params/_METADATA: is missing; delete" in error and error.count("\n") == 1


def test_demo_goes_from_text_to_report(tiny_run, tmp_path, capsys):
    assert main(["demo", *tiny_run, "--steps", "20", "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for expected in ("unigram", "bigram", "trigram", "MoM", "def __init__(self, ", "report:"):
        assert expected in shown
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| trigram |" in report and "bits per byte" in report and "(load.png)" in report


def test_the_comparison_says_by_how_much():
    rows = comparison(2.0, {"bigram": 2.5, "trigram": 1.6})
    assert rows == [
        ("bigram", "2.5000", "0.5000 bits (20.0%) lower"),
        ("trigram", "1.6000", "0.4000 bits (25.0%) higher"),
        ("MoM", "2.0000", ""),
    ]


def test_data_prepare_feeds_training(tiny_run, tmp_path, capsys):
    corpus = tiny_run[tiny_run.index("--data.path") + 1]
    assert main(["data", "prepare", str(tmp_path / "shards"), "--data.path", corpus, "--workers", "1"]) == 0
    assert "shards written" in capsys.readouterr().out
    assert (tmp_path / "shards" / "index.json").is_file()
