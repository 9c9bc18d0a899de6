"""The verbs on a real, tiny run: train, stop, resume, evaluate, generate, demonstrate."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mom_jax.cli.main import main
from mom_jax.errors import install
from mom_jax.training.checkpoint import load_run
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
    assert 1 <= step < 30
    assert "Traceback" not in output and "os.fork" not in output


def test_the_same_command_resumes_to_the_end(trained):
    steps = [record["step"] for record in read_metrics(trained) if "loss" in record]
    assert steps == list(range(1, 31))
    assert TrainConfig.from_file(trained / "config.json").steps == 30
    assert "| steps | 30 of 30 |" in (trained / "report.md").read_text(encoding="utf-8")


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


def write_task(folder: Path) -> str:
    """A task of three questions in a folder, for --include-path."""
    row = json.dumps({"question": "a b", "choices": [" c", " d"]}) + "\n"
    (folder / "data.jsonl").write_text(3 * row, encoding="utf-8")
    (folder / "task.yaml").write_text(TASK.replace("PLACE", str(folder / "data.jsonl")), encoding="utf-8")
    return str(folder)


def scores_of(folder: Path) -> dict:
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))


def test_eval_prints_and_keeps_scores(trained, capsys):
    """Scores, n-gram models of the same text and a sample: printed, in eval.json and on the page."""
    assert main(["eval", str(trained), "--sequence-length", "48"]) == 0
    shown, scores = capsys.readouterr().out, scores_of(trained)
    assert scores["step"] == 30 and scores["sequence_length"] == 48
    assert 0 < scores["bits_per_byte"] < 8
    page = (trained / "report.md").read_text(encoding="utf-8")
    for told in (f"{scores['bits_per_byte']:.4f}", "memory 3", "trigram", f"{scores['baselines']['trigram']:.4f}"):
        assert told in shown and told in page
    assert scores["sample"]["prompt"] + scores["sample"]["text"] in shown
    assert scores["sample"]["prompt"].splitlines()[0] in page


def test_eval_of_a_few_windows_stands_beside_that_of_all(trained, tmp_path, capsys):
    """It replaces neither the scores of all text nor its n-gram table; every token of that is scored once."""
    tokens = scores_of(trained)["tokens"]
    assert main(["eval", str(trained), "--max-windows", "4", "--no-sample"]) == 0
    scores = scores_of(trained)
    assert scores["tokens"] == tokens > 1000 and [e["windows"] for e in scores["others"]] == [4]
    assert "| trigram |" in (trained / "report.md").read_text(encoding="utf-8")
    assert main(["eval", str(trained), "--out", str(tmp_path / "new/out"), "--no-sample"]) == 0
    assert scores_of(tmp_path / "new/out")["tokens"] == tokens and "others" in scores_of(tmp_path / "new/out")
    assert (tmp_path / "new/out/report.md").is_file() and scores_of(trained) == scores, "the run's folder is left alone"


def test_eval_of_a_run_that_cannot_be_written_to(trained, monkeypatch, capsys, complaint):
    """It says so first, and gives its scores; a place that was asked for has to take them."""
    line = ["eval", str(trained), "--no-sample"]
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    error = complaint(*line, "--out", f"{trained}/config.json/x")
    assert f"config.json/x: cannot be written to ({trained}/config.json is a file)" in error
    monkeypatch.setattr("mom_jax.cli.evaluate.why_not_writable", lambda folder: "Read-only file system")
    assert main(line) == 0
    said = capsys.readouterr()
    assert f"run={trained}: cannot be written to (Read-only file system): results are only printed" in said.err
    assert said.err.count("mom-jax: ") == 1
    assert "bits/byte" in said.out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_scores_that_cannot_be_kept_are_printed_all_the_same(trained, tmp_path, capsys):
    (tmp_path / "eval.json").mkdir()
    assert main(["eval", str(trained), "--no-sample", "--max-windows", "4", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "4 of " in said.out
    assert f"{tmp_path}: the results above were not kept (Is a directory); --out FOLDER" in said.err.splitlines()[-1]


def test_a_loss_of_nan_is_noticed(trained, monkeypatch, capsys):
    def broken(*args):
        config, model, step = load_run(*args)
        model.embeddings[...] = model.embeddings[...].at[3].set(math.nan)
        return config, model, step

    monkeypatch.setattr("mom_jax.runs.load_run", broken)
    before = scores_of(trained)
    assert main(["eval", str(trained)]) == 2
    said = capsys.readouterr()
    assert "bits/byte" not in said.out and said.err.count("mom-jax: ") == 1
    assert f"run={trained}: its held-out loss at step 30 is nan" in said.err
    assert scores_of(trained) == before


def test_eval_runs_tasks(trained, tmp_path, monkeypatch, capsys):
    """A table, and tasks.json; the table alone where the run cannot be written to."""
    line = f"eval {trained} --tasks tiny_choice --include-path {write_task(tmp_path)}".split()
    assert main(line) == 0
    assert "tiny_choice" in capsys.readouterr().out
    results = json.loads((trained / "tasks.json").read_text(encoding="utf-8"))
    assert results["tasks"]["tiny_choice"]["samples"] == 3 and results["tasks"]["tiny_choice"]["step"] == 30
    monkeypatch.setattr("mom_jax.cli.evaluate.why_not_writable", lambda folder: "Read-only file system")
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert main([*line, "--limit", "2"]) == 0
    said = capsys.readouterr()
    assert "cannot be written to (Read-only file system): results are only printed" in said.err
    assert "tiny_choice" in said.out and {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_eval_without_the_harness_or_a_checkpoint(tmp_path, complaint, monkeypatch):
    line = ["eval", tmp_path, "--tasks", "recall_fda"]
    assert complaint(*line).startswith(f"mom-jax: run={tmp_path}: holds no checkpoint")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"needs lm-evaluation-harness: {install('eval')}" in complaint(*line)


def test_generate_streams_the_same_text_for_the_same_seed(trained, capsys):
    texts = []
    for _ in range(2):
        assert main(["generate", str(trained), "--prompt", "abc é", "--max-new-tokens", "20", "--seed", "3"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("abc é") and len(texts[0]) > len("abc é\n")


def test_training_another_config_there_is_one_line(trained, tiny_run, complaint):
    error = complaint("train", "mom-tiny", *tiny_run, "--run-dir", trained, "--seed", "5")
    assert "another config: seed (was 0, now 5)" in error


def test_damage_is_one_line(trained, tmp_path, complaint):
    shutil.copytree(trained / "checkpoints/30", tmp_path / "run/checkpoints/30")  # and none that could take its place
    (tmp_path / "run/checkpoints/30/params/_METADATA").unlink()
    for line in (["eval", tmp_path / "run"], ["generate", tmp_path / "run", "--prompt", "a"]):
        assert "params/_METADATA: is missing, and there is no other whole checkpoint" in complaint(*line)


def test_demo_goes_from_text_to_report(tiny_run, tmp_path, monkeypatch, capsys):
    """Also where its time is over before its steps are done, as on a slow machine."""
    monkeypatch.setattr("mom_jax.training.loop._Sitting._must_stop", lambda self: self.step >= 5)
    line = ["demo", *tiny_run, "--steps", "5000", "--max-minutes", "0.01", "--run-dir", str(tmp_path / "run")]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "for 5000 steps or 0.01 minutes" in shown.splitlines()[0] and "stopped at step 5" in shown
    assert shown.count("text: ") == 1, "what is trained on is said once"
    for expected in ("unigram", "bigram", "trigram", "this model", "def __init__(self, ", "report:"):
        assert expected in shown
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| trigram |" in report and "bits/byte" in report and "(load.png)" in report


def test_programs_are_kept_and_damaged_ones_are_compiled_anew(trained, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "mom_jax", "generate", str(trained), "--prompt", "a", "--max-new-tokens", "2"]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    kept = sorted((tmp_path / "mom-jax" / "programs").glob("*/*-cache"))
    assert kept
    for damage, path in enumerate(kept):
        content = path.read_bytes()
        path.write_bytes((b"", content[:100], content[: len(content) // 2], b"\0" * len(content))[damage % 4])
    second = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert second.stdout == first.stdout
