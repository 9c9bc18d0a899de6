"""Places that cannot be written or are something else, prompts that are no text, damaged sweeps and tasks."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support import damage
from support.fuzz import TINY, Trials

pytestmark = pytest.mark.fuzz

Copy = Callable[[str], Path]


def hindrances(folder: Path) -> list[str]:
    """Places where nothing can be written, not even by root."""
    (folder / "file").write_text("a file", encoding="utf-8")
    (folder / "self").symlink_to(folder / "self")
    names = ["file", "file/below", "file/further/below", "self", "self/below", "/proc/below", "/dev/null/below"]
    return [*names, "a" * 300, "/proc/1/below"]


def test_results_elsewhere(trials: Trials, copy: Copy, sound: Path):
    run, published = copy("run"), copy("published")
    for place in hindrances(trials.folder):
        trials.refused(["eval", run, "--out", place], "out=")
        trials.refused(["eval", run, "--tasks", "piqa", "--out", place], "out=")
        trials.refused(["report", run, "--out", place], "out=")
        trials.refused(["convert", run, place])
        trials.refused(["convert", published, place])
        trials.refused(["data", "prepare", place, "--data.path", sound / "text", "--workers", 1])
        trials.refused(["experiment", "mqar", "--out", place])
        trials.refused(["compare", "--reference", published, "--out", place])
        trials.refused(["train", "mom-tiny", *TINY, "--data.path", sound / "shards", "--run-dir", place], "run_dir")


def test_folders_of_something_else(trials: Trials, copy: Copy, sound: Path):
    """A run's folder where another kind is wanted, and so on."""
    run, published, shards, text = (copy(name) for name in ("run", "published", "shards", "text"))
    (trials.folder / "empty").mkdir()
    for place in (shards, text, trials.folder / "empty", text / "0.txt", run / "checkpoints", run / "config.json"):
        trials.refused(["eval", place])
        trials.refused(["generate", place, "--prompt", "a"])
        trials.refused(["convert", place, "out"])
        trials.refused(["report", place, "--out", "page.html"])
        trials.refused(["compare", "--reference", place])
    for place in (run, text, published, shards):
        trials.refused(["convert", run, place], str(place))
        trials.refused(["data", "prepare", place, "--data.path", text / "0.txt", "--workers", 1], "out=")
    for place in (run, published, published / "model.safetensors", published / "config.json"):
        trials.refused(["train", "mom-tiny", *TINY, "--run-dir", "new", "--data.path", place], place.name)
    for more in (["--model.topk", "1"], ["--seed", "1"], ["--steps", "3"], ["--data.sequence-length", "16"],
                 ["--model.num-memories", "8"], ["--data.path", text], ["--optimizer.beta1", "0.5"]):  # fmt: skip
        line = ["train", "mom-tiny", *TINY, "--data.path", sound / "shards", "--run-dir", run]
        trials.refused([*line, "--steps", 6, *more])


def test_prompts(trials: Trials, copy: Copy, rng: random.Random):
    run, file = copy("run"), trials.folder / "prompt"
    texts = [b"\xff\xfea\0", b"caf\xe9", b"\xed\xa0\x80", b"\xc3", b"", b"\x80abc", b"\xff" * 5000]
    texts += [rng.randbytes(30) + b"\xff" for _ in range(10)]
    for text in texts:
        file.write_bytes(text)
        trials.refused(["generate", run, "--prompt-file", file], "prompt_file=")
        trials.refused(["generate", run, "--prompt", "-"], "prompt=", stdin=text)
        trials.refused(["generate", run, "--prompts", file], "prompts=")
        trials.refused(["generate", run, "--prompts", "-"], "prompts=", stdin=text)
        if text:
            trials.refused(["generate", run, "--prompt", os.fsdecode(text).replace("\0", "")], "prompt=")
    for place in ("nowhere", "self", run, "prompt/x", "", "/proc/self/mem", "gs://b/prompt", "a" * 300):
        trials.refused(["generate", run, "--prompt-file", place], "prompt_file=")
        trials.refused(["generate", run, "--prompts", place], "prompts=")
    file.write_text("a\n", encoding="utf-8")
    for place in (run, "nowhere/x", "", "a" * 300, run / "metrics.jsonl", file):
        trials.refused(["generate", run, "--prompts", file, "--out", place], "out=")
    lines = ['{"prompt": 1}', '{"prompt": "a", "seed": 1.5}', '{"prompt": "a", "stop": [1]}', '{"prompt": "a"} x', "[]"]
    lines += ['{"prompt": "a", "max_new_tokens": null}', '{"prompt": "a", "prompt": "b"}', "[" * 9000, "{", "a"]
    for line in lines:
        trials.refused(["generate", run, "--prompts", "-"], "prompts=-:2", stdin=('{"prompt": "a"}\n' + line).encode())
    for more in (["--stop", ""], ["--stop"], ["--top-k", "265"], ["--num-samples", "2", "--temperature", "0"],
                 ["--prompt-file", file], ["--prompt="], ["--prompt"], ["--temperature", "1e-60"]):  # fmt: skip
        trials.refused(["generate", run, "--prompt", "a", *more])


def test_sweeps(trials: Trials, rng: random.Random):
    """Lines that are damaged are said and left out; a sweep of no other lines is refused."""
    folder = trials.folder / "runs" / "experiments" / "mqar-tiny"
    folder.mkdir(parents=True)
    points = folder / "points.jsonl"
    wrong = ["{", "[]", "3", '{"point": 3}', '{"point": {}, "result": 3, "seconds": 1}', '{"point": {}}', "\0" * 50]
    wrong += ["[" * 100_000, '{"a": 1, "a": 2}']
    for line in wrong:
        points.write_text(line + "\n", encoding="utf-8")
        trials.refused(["experiment", "mqar", "--plot"])
        trials.refused(["report", folder, "--out", "page.html"], "mqar-tiny")
    damage.make_folder(points, rng)
    trials.refused(["experiment", "mqar", "--plot"])
    trials.refused(["report", folder])


TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "docs.jsonl"},
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
}


def test_tasks(trials: Trials, copy: Copy):
    """Names and files of tasks that do not fit."""
    run, tasks = copy("run"), trials.folder / "tasks"
    tasks.mkdir()
    line = ["eval", run, "--include-path", tasks, "--tasks"]
    for name in ("no_such_task", "piqa,no_such_task", "PIQA", "pi qa", "../piqa", "mine"):
        trials.refused([*line, name], "tasks")
    docs = ["", "{", '{"question": "a"}', '{"question": 3, "choices": []}', '{"question": "a", "choices": ["", ""]}']
    for content in docs:
        (trials.folder / "docs.jsonl").write_text(f"{content}\n", encoding="utf-8")
        (tasks / "mine.yaml").write_text(json.dumps(TASK), encoding="utf-8")
        trials.refused([*line, "mine"])
    function = "a: !function nowhere.f\ntask: mine"
    for text in ("task: [", "\0", "task: mine", "- a", "task: mine\noutput_type: nothing\n", function):
        (tasks / "mine.yaml").write_text(text, encoding="utf-8")
        trials.refused([*line, "mine"])
