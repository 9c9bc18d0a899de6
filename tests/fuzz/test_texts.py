"""Text as it should not be, and folders that look odd and are sound."""

import bz2
import gzip
import json
import lzma
import os
import random
from pathlib import Path

import pytest
from support.fuzz import SPLIT, Trials

pytestmark = pytest.mark.fuzz

LINES = "".join(json.dumps({"text": f"document number {i} of a text"}) + "\n" for i in range(40)).encode()
PROSE = b"some words of a text\n" * 200
# Content that is no text, by what a file of it may be called.
BROKEN = [
    ("a.txt", b""),
    ("a.txt", b"\xff\xfe" + "words".encode("utf-16-le")),
    ("a.txt", "café ".encode("latin-1") * 50),
    ("a.txt", "日本語".encode("shift-jis") * 50),
    ("a.txt", b"\x80" * 100),
    ("a.txt", PROSE + b"\xc3"),
    ("a.txt", b"\xed\xa0\x80" * 20),  # half of a pair
    ("a.txt", b"\x7fELF\0\0\0\1" * 50),
    ("a.md", b"\x89PNG\r\n\x1a\n" + b"\0" * 50),
    ("a.txt.gz", PROSE),
    ("a.txt.gz", gzip.compress(PROSE)[:40]),
    ("a.txt.gz", gzip.compress(PROSE)[:-4] + b"\0\0\0\0"),
    ("a.txt.bz2", bz2.compress(PROSE)[:-6]),
    ("a.txt.xz", lzma.compress(PROSE)[:-20]),
    ("a.txt.xz", b"\xfd7zXZ\0" + b"\0" * 40),
    ("a.txt.zst", b"\x28\xb5\x2f\xfd" + b"\0" * 40),
    ("a.txt.zst", PROSE),
    ("a.txt.gz", gzip.compress("é".encode("latin-1") * 99)),
    ("a.txt.gz", b""),
    ("a.jsonl", b""),
    ("a.jsonl", b"\n\n\n"),
    ("a.jsonl", LINES + b"{"),
    ("a.jsonl", b"{'text': 'a'}\n" * 20),
    ("a.jsonl", LINES + b'{"txt": "a"}\n'),
    ("a.jsonl", LINES + b'{"text": 3}\n'),
    ("a.jsonl", LINES + b'{"text": ["a"]}\n'),
    ("a.jsonl", LINES + b"[1, 2]\n"),
    ("a.jsonl", LINES + b'"text"\n'),
    ("a.jsonl", LINES + b"\xff\n"),
    ("a.jsonl", LINES.decode().encode("utf-16")),
    ("a.jsonl", LINES.decode().encode("utf-32")),
    ("a.jsonl", LINES + b"[" * 100_000 + b"\n"),
    ("a.jsonl", LINES + b'{"text": "a\x00b\n'),
    ("a.jsonl", b"\0" * 4000),
    ("a.jsonl", LINES[:100]),
    ("a.jsonl.gz", gzip.compress(LINES)[:60]),
    ("a.jsonl.gz", LINES),
    ("a.json", b"{}"),
    ("a.json", b"[]"),
    ("a.json", b"null"),
    ("a.json", b'[{"text": "a"}, '),
    ("a.json", b'[{"text": "a"}, {"txt": "b"}]'),
    ("a.json", b"[" * 100_000),
    ("a.json", b'{"text": "one"}'),
    ("a.parquet", b""),
    ("a.parquet", b"PAR1"),
    ("a.parquet", b"PAR1" + b"\0" * 200 + b"PAR1"),
    ("a.parquet", LINES),
    ("a.arrow", b"ARROW1\0\0" + b"\0" * 100),
    ("a.arrow", b""),
    ("a.feather", LINES),
    ("a.bin", bytes(range(256)) * 8),
    ("a.zip", b"PK\3\4" + b"\0" * 100),
    ("a.tar", b"\0" * 2048),
    ("a.pdf", b"%PDF-1.4\n\xe2\xe3\xcf\xd3\n"),
    ("a", b"\0\1\2\3" * 100),
]


def prepare(place: object, *more: str) -> list[object]:
    """The command that prepares a text."""
    return ["data", "prepare", "shards", "--workers", 1, "--data.path", place, *more]


@pytest.mark.parametrize("named", [True, False], ids=["a file", "in a folder"])
def test_broken_files(named: bool, trials: Trials):
    """Alone, and as one of a folder in which all others are text."""
    for i, (name, content) in enumerate(BROKEN):
        folder = trials.folder / str(i)
        folder.mkdir()
        (folder / name).write_bytes(content)
        trials.refused(prepare(folder / name if named else folder))


def test_broken_files_among_others(trials: Trials):
    """They are named and stop the work, but for those that hold no text by their names or first object."""
    for i, (name, content) in enumerate(BROKEN):
        folder = trials.folder / f"folder {i}"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_bytes(PROSE + b"%d" % number)
        (folder / name).write_bytes(content)
        if content in EMPTY:
            trials.accepted([*prepare(folder), "--dry-run"], "text: ")
        elif (name == "a.json" and content in DESCRIPTIONS) or Path(name).suffix in NO_TEXT:
            trials.accepted([*prepare(folder), "--dry-run"], "left out: 1 ")
        else:
            trials.refused(prepare(folder), name)


EMPTY = (b"", b"\n\n\n", b'{"text": "one"}')
DESCRIPTIONS = (b"{}", b"[]", b"null", b"[" * 100_000)
NO_TEXT = (".bin", ".zip", ".tar", ".pdf", "")
NAMES = ["a [1]", "a\\b", "*", "?", "new\nline", "tab\t", "日本語", "e\u0301", "-x", "--data.path", "[/b]", "%s", "{x}",
         "a'b", 'a"b', " a ", "~", "$HOME", "a" * 200, "\u202ereversed", "#", "hf:a", "a:b"]  # fmt: skip


def test_names(trials: Trials):
    """Folders and files of any name are read."""
    for name in NAMES:
        folder = trials.folder / "texts" / name
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{name.replace('/', '')} {number}.txt").write_bytes(PROSE)
        trials.accepted([*prepare(folder, *SPLIT), "--dry-run"], "text: ")
    bad = os.fsencode(trials.folder) + b"/texts/caf\xe9"
    os.mkdir(bad)
    Path(os.fsdecode(bad), "a.txt").write_bytes(PROSE)
    trials.accepted([*prepare(os.fsdecode(bad)), "--dry-run"], "text: ")


def test_places(trials: Trials):
    """Places that are none, empty or go round in circles."""
    folder = trials.folder
    (folder / "text.txt").write_bytes(PROSE)
    (folder / "empty").mkdir()
    (folder / "round").mkdir()
    (folder / "round" / "again").symlink_to(folder / "round")
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe")
    (folder / "with pipe").mkdir()
    os.mkfifo(folder / "with pipe" / "a.txt")
    texts = {"readme/README.md": PROSE, "hidden/.a.txt": PROSE, "test/test.txt": PROSE, "valid/valid.jsonl": LINES}
    for name, content in texts.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(content)
    places = ["empty", "round", "gone", "self", "pipe", "with pipe", "readme", "hidden", "nowhere", "*.nothing",
              "text.txt/x", "/dev/null", "/dev/zero", "/proc/self/mem", "hf:", "hf:no-such-owner/no-such", "gs://b/t",
              "s3:/b/t", "a" * 300, "hf://datasets/a/b", "https://example.org/t.txt", "file:///etc/passwd", "[",
              "**/*.no", "~nobody/x", "wikitext", "allenai/c4"]  # fmt: skip
    held_out = prepare("text.txt", "--data.held-out-path")
    for place in places:
        trials.refused(prepare(place))
        trials.refused([*held_out, place])
    for place in ("test", "valid"):  # nothing to train on, and right to hold out
        trials.refused(prepare(place))
        trials.accepted([*held_out, place, "--dry-run"], "held_out_path says")


def test_options_that_leave_nothing(trials: Trials, rng: random.Random):
    folder = trials.folder / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jsonl").write_bytes(LINES)
    for more in (
        ["--data.exclude", "*"], ["--data.exclude", "*.jsonl"], ["--data.exclude", "texts", "0.*", "1.*", "2.*"],
        ["--data.text-field", "body"], ["--data.text-field", "body", "--data.on-error", "skip"],
        ["--data.held-out-path", str(folder)], ["--data.held-out-path", str(folder / "1.jsonl")],
        ["--data.tokenizer", "gone.json"], ["--data.tokenizer", "gone.model"], ["--data.tokenizer", str(folder)],
        ["--data.tokenizer", "no-such-owner/no-such"], ["--data.tokenizer", "gs://b/t"],
        ["--data.tokenizer", "mistral2"], ["--shard", "1/0"], ["--shard", "-1/2"], ["--shard", "1"], ["--shard", "a/b"],
        ["--shard", "0/1/2"], ["--shard", "2/2"],
    ):  # fmt: skip
        trials.refused(prepare(folder, *more))
