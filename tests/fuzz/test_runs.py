"""Damaged run folders: checkpoints, manifests, configurations, and the files of results beside them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import damage
from support.fuzz import TINY, Trials

pytestmark = pytest.mark.fuzz

Copy = Callable[[str], Path]


def readers(run: Path, sound: Path, rng: random.Random) -> list[object]:
    """One of the commands that read a run's checkpoint."""
    lines = [
        ["eval", run],
        ["generate", run, "--prompt", "a"],
        ["convert", run, "converted"],
        ["train", "mom-tiny", *TINY, "--data.path", sound / "shards", "--run-dir", run],
    ]
    return rng.choice(lines)


def one_checkpoint(copy: Copy) -> Path:
    """A run of which only the newest checkpoint is left."""
    run = copy("run")
    shutil.rmtree(run / "checkpoints" / "2")
    return run


def test_files_of_checkpoints(trials: Trials, copy: Copy, sound: Path, rng: random.Random):
    inside = one_checkpoint(copy) / "checkpoints" / "4"
    files = [path for path in sorted(inside.rglob("*")) if path.is_file() and path.relative_to(inside).parts[1:]]
    for path in [*files, *files, *files, inside / "manifest.json"]:
        run = one_checkpoint(copy)
        rng.choice(damage.BYTES)(path, rng)
        trials.refused(readers(run, sound, rng), "checkpoint=", path.name)


def test_an_older_checkpoint_is_used(trials: Trials, copy: Copy, rng: random.Random):
    files = [path for path in sorted((copy("run") / "checkpoints" / "4" / "params").rglob("*")) if path.is_file()]
    for path in rng.sample(files, 6):
        run = copy("run")
        rng.choice(damage.BYTES)(path, rng)
        shutil.rmtree("converted", ignore_errors=True)
        trials.accepted(["convert", run, "converted"], path.name, "damaged")


def test_manifests(trials: Trials, copy: Copy, sound: Path, rng: random.Random):
    path = one_checkpoint(copy) / "checkpoints" / "4" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    ways = list(damage.places(manifest))
    spoilt = [json.dumps(damage.with_value(manifest, way, damage.of_other_kind(manifest, way, rng)))
              for way in rng.sample(ways, 40)]  # fmt: skip
    for text in [*damage.WHOLES, *spoilt]:
        run = one_checkpoint(copy)
        damage.put(path, text)
        trials.refused(readers(run, sound, rng), "checkpoint=")


def test_configurations(trials: Trials, copy: Copy, rng: random.Random):
    path = copy("run") / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    ways = [way for way in damage.places(config) if damage.at(config, way) is not None]
    spoilt = [(way[-1], json.dumps(damage.with_value(config, way, damage.of_other_kind(config, way, rng, none=False))))
              for way in ways]  # fmt: skip
    for name, text in [*(("config.json", text) for text in damage.WHOLES), *spoilt]:
        damage.put(path, text)
        trials.refused(["report", path.parent], name)
    for harm in [damage.cut, damage.zero, damage.garble, damage.empty, damage.other_encoding]:
        run = copy("run")
        harm(path, rng)
        trials.refused(["report", run], "config.json")


@pytest.mark.parametrize("name", ["eval.json", "metrics.jsonl", "sittings.jsonl"])
def test_files_of_results(name: str, trials: Trials, copy: Copy, rng: random.Random):
    """They are left out of the page, which says so."""
    lines = [b"\0" * 100, b"{", b"[1]", b'{"step": []}', rng.randbytes(100), "{}".encode("utf-16")]
    for content in [line + b"\n" for line in lines]:
        run = copy("run")
        damage.put(run / name, content)
        trials.accepted(["report", run, "--out", "page.html"], in_file=(Path("page.html"), name))


def test_evaluations_begun_anew(trials: Trials, copy: Copy):
    for content in ["{", "[]", '{"loss": "low"}']:
        run = copy("run")
        damage.put(run / "eval.json", content)
        trials.accepted(["eval", run, "--no-sample", "--max-windows", 2], "mom-jax: ", "eval.json")
