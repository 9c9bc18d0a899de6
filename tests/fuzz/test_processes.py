"""Commands as processes: encodings of terminals, streams that are closed, pipes that nobody reads."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import damage
from support.fuzz import LIMIT, TINY, Ended, Trials, as_process

pytestmark = pytest.mark.fuzz

Copy = Callable[[str], Path]
LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"TERM": "dumb", "NO_COLOR": "1"},
    {"COLUMNS": "1"},
]


def test_odd_words_in_odd_locales(trials: Trials):
    words = ["中文", "café", "[/b]", "\x1b[31mred", "a\nb", "\u202e", os.fsdecode(b"caf\xe9"), "😀"]
    for number, word in enumerate(words):
        for environment in (LOCALES[number % len(LOCALES)], LOCALES[(number + 2) % len(LOCALES)]):
            line = [["plan", word], ["generate", word, "--prompt", "a"], ["data", word], ["train", word]][number % 4]
            trials.refused(line, run=as_process, **environment)


def test_streams(trials: Trials, copy: Copy):
    """Without standard input, output or error."""
    run = copy("run")
    trials.refused(["generate", run, "--prompt", "-"], "prompt=", run=closed, streams="<&-")
    trials.refused(["generate", "nowhere", "--prompt", "a"], run=closed, streams=">&-")
    trials.refused(["eval", "nowhere"], run=closed, streams="<&- >&-")
    trials.accepted(["plan", "mom-tiny"], run=closed, streams=">&-")
    trials.accepted(["plan", "mom-tiny"], "total", run=closed, streams="2>&-")
    trials.accepted(["generate", run, "--prompt", "a", "--max-new-tokens", 2], run=closed, streams="2>&-")


def closed(args: list[str], streams: str) -> Ended:
    """A process whose shell closes streams of it."""
    command = ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, "-m", "mom_jax", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    return Ended(done.returncode, done.stdout, done.stderr, 0)


def test_readers_that_leave(trials: Trials, copy: Copy, sound: Path):
    """What prints alone ends as others do; what writes results goes on."""
    run = copy("run")
    train = ["train", "mom-tiny", *TINY, "--data.path", sound / "shards", "--run-dir", run, "--steps", 6]
    trials.accepted(["plan", "mom-tiny"], run=unread, status=141)
    trials.accepted(["generate", run, "--prompt", "a"], run=unread, status=141)
    trials.accepted(["eval", run, "--no-sample"], run=unread, status=0)
    trials.accepted(train, run=unread, status=0)
    assert (run / "checkpoints" / "6" / "manifest.json").exists()


def unread(args: list[str], status: int) -> Ended:
    """A process whose output nobody reads; it ended well if its status is this one."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mom_jax", *args]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    os.close(writer)
    return Ended(0 if done.returncode == status else done.returncode or 1, "", done.stderr, 0)


def test_damaged_things(trials: Trials, copy: Copy, sound: Path, rng: random.Random):
    """As in the other tests, but with all that libraries write past Python's streams."""
    for harm in (damage.cut, damage.zero):
        shards, published, run = copy("shards"), copy("published"), copy("run")
        harm(shards / "train-00000.bin", rng)
        harm(published / "model.safetensors", rng)
        for step in ("2", "4"):
            harm(run / "checkpoints" / step / "params" / "manifest.ocdbt", rng)
        train = ["train", "mom-tiny", *TINY, "--run-dir", "new", "--data.path", shards]
        trials.refused(train, "train-00000", run=as_process)
        trials.refused(["convert", published, "out"], "model.safetensors", run=as_process)
        trials.refused(["generate", run, "--prompt", "a"], "checkpoint=", run=as_process)
