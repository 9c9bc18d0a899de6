import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import documents_of

import mom_jax.data.prepare as preparing
from mom_jax.cli.main import main
from mom_jax.data.config import DataConfig
from mom_jax.data.opening import read_lines
from mom_jax.data.preparation import write_unit
from mom_jax.data.prepare import foresee, prepare, prepared
from mom_jax.data.shards import open_prepared
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.data.verification import verify
from mom_jax.data.workers import run
from mom_jax.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
OLD_RECORD = ("key", "tokens", "documents", "text_bytes", "bin_sha256", "offsets_sha256")
FILES = [[f"file {i} document {j} " * 5 for j in range(5)] for i in range(12)]


def _contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _texts(stream):
    return [ByteTokenizer().decode(ids[:-1]) for ids in documents_of(stream)]


@pytest.fixture
def config(corpus, tmp_path):
    return DataConfig(
        path=str(corpus(FILES)), held_out_fraction=0.3, shard_bytes=1000, cache_dir=str(tmp_path / "sums")
    )


@settings(max_examples=25)
@given(st.lists(st.lists(TEXT, max_size=4), min_size=2, max_size=6), st.integers(1, 200), st.floats(0.05, 0.9))
def test_reading_back_gives_the_documents(files, shard_bytes, fraction):
    files = [[*documents, f"never empty {i}"] for i, documents in enumerate(files)]
    with tempfile.TemporaryDirectory() as folder:
        for number, documents in enumerate(files):
            pq.write_table(pa.table({"text": documents}), f"{folder}/{number}.parquet")
        config = DataConfig(
            path=f"{folder}/*.parquet", shard_bytes=shard_bytes, held_out_fraction=fraction, cache_dir=f"{folder}/cache"
        )
        summary = prepare(config, f"{folder}/out", progress=False)
        data = open_prepared(f"{folder}/out")
        verify(data, f"{folder}/cache")
        found = [_texts(data.train), _texts(data.held_out)]
    wanted = [text for documents in files for text in documents if text]
    assert all(found)
    for texts in found:  # in the order of files and documents
        rest = iter(wanted)
        assert all(text in rest for text in texts)
    assert sorted(found[0] + found[1]) == sorted(wanted)
    documents, text_bytes, tokens = (
        getattr(summary.train, field) + getattr(summary.held_out, field)
        for field in ("documents", "text_bytes", "tokens")
    )
    assert documents == data.train.documents + data.held_out.documents == len(wanted)
    assert text_bytes == sum(len(text.encode()) for text in wanted) and tokens == text_bytes + documents


def test_the_same_bytes_whatever_the_workers_and_parts(config, tmp_path, recwarn):
    one = prepare(config, tmp_path / "one", workers=1)
    assert one.written > 4 and (one.kept, one.missing) == (0, 0)
    jax.devices()  # from now on JAX warns of every fork: its threads may hang the child
    prepare(config, tmp_path / "two", workers=2)
    assert not [said for said in recwarn if "os.fork" in str(said.message)]
    for part in (2, 0, 1):
        last = prepare(config, tmp_path / "parts", workers=1, shard=(part, 3))
        assert last.kept == 0
    assert last.missing == 0
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two") == _contents(tmp_path / "parts")


def test_parts_count_what_is_missing(config, tmp_path):
    total = prepare(config, tmp_path / "whole").written
    first = prepare(config, tmp_path / "out", shard=(0, 2))
    assert first.written + first.missing == total and first.missing > 0
    with pytest.raises(InputError, match="not prepared yet"):
        open_prepared(tmp_path / "out")


def test_parts_made_apart_merge_by_copying(config, tmp_path):
    for part in (0, 1):
        prepare(config, tmp_path / f"{part}", shard=(part, 2))
    merged = tmp_path / "merged"
    merged.mkdir()
    for part in (0, 1):
        for name, blob in _contents(tmp_path / f"{part}").items():
            (merged / name).write_bytes(blob)
    prepare(config, tmp_path / "whole")
    assert _contents(merged) == _contents(tmp_path / "whole")
    verify(open_prepared(merged), config.cache_dir)


KILLED = """
import os, signal, sys
from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.data.verification import verify
from mom_jax.data.workers import run
encode, calls = ByteTokenizer.encode, []
def kill_at_document_23(self, text):
    calls.append(text)
    if len(calls) == 23:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, text)
ByteTokenizer.encode = kill_at_document_23
config = DataConfig(path=sys.argv[1], held_out_fraction=0.3, shard_bytes=1000, cache_dir=sys.argv[3])
prepare(config, sys.argv[2], workers=1)
"""


def test_a_killed_run_resumes(config, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, config.path, str(tmp_path / "out"), config.cache_dir], capture_output=True
    )
    assert killed.returncode == -9, killed.stderr
    assert [name for name in _contents(tmp_path / "out") if name.endswith(".tmp")]
    finished = {name: blob for name, blob in _contents(tmp_path / "out").items() if name.endswith(".bin")}
    again = prepare(config, tmp_path / "out", workers=1)
    assert again.kept == len(finished) >= 2 and again.written > 0
    prepare(config, tmp_path / "clean", workers=1)
    assert _contents(tmp_path / "out") == _contents(tmp_path / "clean")
    assert finished.items() <= _contents(tmp_path / "clean").items()


@pytest.mark.parametrize("work", ["preparation.write_shards", "sums.sum_of"])
def test_no_shard_is_written_and_no_text_read_again_without_need(config, tmp_path, monkeypatch, work):
    monkeypatch.setattr("mom_jax.data.sums._SETTLED", -1.0)
    prepare(config, tmp_path / "out")
    monkeypatch.setattr(f"mom_jax.data.{work}", None)
    assert prepare(config, tmp_path / "out").written == 0


def test_mistakes_in_the_text_reach_us_from_a_worker(config, tmp_path):
    Path(config.path, "part-003.jsonl").write_text('{"text": "fine"}\n{"text', encoding="utf-8")
    with pytest.raises(InputError, match=r"part-003\.jsonl:2") as caught:
        prepare(config, tmp_path / "out", workers=2)
    assert caught.value.field == "path"
    assert not [name for name in _contents(tmp_path / "out") if name.endswith(".tmp")]


def test_a_killed_worker_is_one_line():
    with pytest.raises(InputError, match="workers=2: a worker was killed"):
        list(run(os._exit, [3, 3, 3], 2))


@pytest.mark.parametrize(("field", "value"), [("shard", (2, 2)), ("shard", (-1, 2)), ("shard", (0, 0)), ("workers", 0)])
def test_a_bad_part_or_number_of_workers(config, tmp_path, field, value):
    with pytest.raises(InputError, match=rf"^{field}=-?\d"):
        prepare(config, tmp_path / "out", **{field: value})
    assert not (tmp_path / "out").exists()


def test_the_folder_must_be_ours(config, corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        prepare(config, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be created"):
        prepare(config, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="not empty and holds no shards"):
        prepare(config, config.path)
    prepare(config, tmp_path / "out")
    other = DataConfig(path=str(corpus(FILES[:5], "other")))
    before = _contents(tmp_path / "out")
    with pytest.raises(InputError, match="shards of other text"):
        prepare(other, tmp_path / "out")
    assert _contents(tmp_path / "out") == before


def test_a_lone_file_is_split_by_document(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"document {i}" for i in range(200)] * 2}), path)
    prepare(DataConfig(path=str(path), held_out_fraction=0.2), tmp_path / "out")
    data = open_prepared(tmp_path / "out")
    train, held_out = _texts(data.train), _texts(data.held_out)
    assert len(train) + len(held_out) == 400
    assert not set(train) & set(held_out), "equal documents must fall on one side"
    assert 20 < len(held_out) < 160


@pytest.mark.parametrize("documents", [["only one"], ["same", "same"], [""]])
def test_a_single_document_cannot_be_split(corpus, documents):
    path = corpus([documents]) / "part-000.jsonl"
    with pytest.raises(InputError, match="held_out_path"):
        prepared(DataConfig(path=str(path), cache_dir=str(path.parent / "cache")))


@pytest.mark.parametrize(
    ("name", "blob", "reason"),
    [
        ("a.txt", b"one\n\0", "a.txt:2: holds a NUL byte"),
        ("a.jsonl", b'{"text": "one"}\n{"te', "a.jsonl:2: is not a JSON"),
        ("a.parquet", b"PAR1", "not a whole parquet file"),
        ("a.txt.gz", b"no archive", "cannot be read"),
    ],
)
def test_a_broken_lone_file_is_named(tmp_path, name, blob, reason):
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(InputError) as caught:
        prepare(DataConfig(path=str(tmp_path / name)), tmp_path / "out")
    assert reason in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_held_out_path(corpus, tmp_path):
    a, b = corpus([["train one"], ["train two"]], "a"), corpus([["held out"]], "b")
    prepare(DataConfig(path=str(a), held_out_path=str(b)), tmp_path / "out")
    data = open_prepared(tmp_path / "out")
    assert (_texts(data.train), _texts(data.held_out)) == (["train one", "train two"], ["held out"])


def test_held_out_path_mistakes(corpus, tmp_path):
    a = corpus([["one"], ["two"]], "a")
    with pytest.raises(InputError, match=r"held_out_path=.*overlaps"):
        prepare(DataConfig(path=str(a), held_out_path=str(a / "part-001.jsonl")), tmp_path / "out")
    with pytest.raises(InputError, match=r"^held_out_path=.*no such file"):
        prepare(DataConfig(path=str(a), held_out_path=str(a / "absent.txt")), tmp_path / "out")
    empty = corpus([[""]], "b")
    with pytest.raises(InputError, match=r"^held_out_path=.*has no held-out text"):
        prepare(DataConfig(path=str(a), held_out_path=str(empty)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["one.jsonl", "one.json", "two.parquet"])
def test_text_without_documents_is_refused_and_leaves_nothing(tmp_path, name):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "valid.txt").write_text("held out", encoding="utf-8")
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / name)
    else:
        (folder / name).write_text('{"text": ""}\n' * 3, encoding="utf-8")
    config = DataConfig(path=str(folder / "*"), cache_dir=str(tmp_path / "cache"))
    for attempt in (lambda: prepare(config, tmp_path / "out"), lambda: prepared(config)):
        with pytest.raises(InputError, match=r"^path=.*has no train text"):
            attempt()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="fewer than two different documents"):
        prepare(dataclasses.replace(config, path=str(folder / name)), tmp_path / "out")


def test_edits_at_equal_length_are_noticed(config, tmp_path, monkeypatch):
    monkeypatch.setattr("mom_jax.data.sums._SETTLED", -1.0)
    prepare(config, tmp_path / "out")
    assert prepare(config, tmp_path / "out").written == 0
    path = Path(config.path, "part-003.jsonl")
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"document 2", b"DOCUMENT 2"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare(config, tmp_path / "out").written == 1
    data = open_prepared(tmp_path / "out")
    assert sum("DOCUMENT 2" in text for text in _texts(data.train) + _texts(data.held_out)) == 1
    # A copy with other times is the same text: read again, but not tokenised again.
    for other in Path(config.path).iterdir():
        os.utime(other, ns=(7, 7))
    assert prepare(config, tmp_path / "out").written == 0


def test_a_cache_follows_edits_at_equal_length_and_time(config):
    first = prepared(config)
    path = Path(config.path, "part-003.jsonl")
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"document 2", b"DOCUMENT 2"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepared(config).fingerprint != first.fingerprint


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_large_json_lines_are_cut_between_lines(tmp_path, monkeypatch, end):
    texts = [f"{i} " + "z" * (i % 13) for i in range(300)]
    lines = (end or "\n").join(json.dumps({"text": text}) for text in texts) + end
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    config = DataConfig(path=str(tmp_path / "a.jsonl"), shard_bytes=400, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr("mom_jax.data.split._MEASURED_UP_TO", 0)  # as a large file, it is read once
    opened = []
    monkeypatch.setattr("mom_jax.data.documents.read_lines", lambda *at: opened.append(at[1:]) or read_lines(*at))
    prepare(config, tmp_path / "out")
    assert len(opened) > 10 and len(set(opened)) == len(opened)
    data = open_prepared(tmp_path / "out")
    found = _texts(data.train), _texts(data.held_out)
    assert all(found) and sorted(found[0] + found[1]) == sorted(texts)
    assert found[0] == [text for text in texts if text in found[0]]


def test_a_broken_line_of_a_cut_file_is_named(tmp_path):
    lines = [json.dumps({"text": f"line {i}"}) for i in range(200)]
    lines[150] = '{"text'
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "valid.txt").write_text("held out", encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "*"), shard_bytes=300, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"a\.jsonl:151: is not a JSON object"):
        prepare(config, tmp_path / "out")
    skipping = dataclasses.replace(config, on_error="skip")
    summary = prepare(skipping, tmp_path / "out")
    assert (summary.train.documents, summary.train.skipped) == (199, 1)
    assert "skipped as broken: 1 (the first: path=a.jsonl:151: is not" in summary.notes[1]
    # What was skipped is told again, and does not pass for whole afterwards.
    assert prepare(skipping, tmp_path / "out").notes == summary.notes
    assert prepared(DataConfig(path=str(tmp_path / "out"), cache_dir=config.cache_dir)).notes[1] == summary.notes[1]
    with pytest.raises(InputError, match=r"a\.jsonl:151"):
        prepare(config, tmp_path / "out")


def test_one_broken_file_of_many_is_skipped(config, tmp_path):
    for name, blob in (("a.txt", b"caf\xe9"), ("b.txt", b"\0"), ("c.parquet", b"none")):
        Path(config.path, name).write_bytes(blob)
    with pytest.raises(InputError):
        prepare(config, tmp_path / "out")
    summary = prepare(dataclasses.replace(config, on_error="skip"), tmp_path / "skipped", workers=2)
    assert summary.train.skipped + summary.held_out.skipped == 3
    assert summary.train.documents + summary.held_out.documents == 60


def test_how_much_is_on_each_side_is_told(corpus, tmp_path):
    folder = corpus([["to train on"] * 3])
    (folder / "part-000.jsonl").rename(folder / "train.jsonl")
    (folder / "test.txt").write_text("held out", encoding="utf-8")
    (folder / "README.md").write_text("about", encoding="utf-8")
    config = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"))
    (line, left_out) = prepare(config, tmp_path / "out").notes
    assert line == (
        "text: to train on 3 documents, 33 bytes, 36 tokens; held out 1 document, 8 bytes, 9 tokens "
        "(19.5%, as the files' names say)"
    )
    assert left_out == "left out: 1 about the data (README.md)"
    assert prepared(config).notes == (line, left_out)
    assert prepared(DataConfig(path=str(tmp_path / "out"), cache_dir=config.cache_dir)).notes == (line,)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (
            ["train.jsonl", "test.jsonl", "b.png"],
            ["held out 1 file, ", "(test.jsonl)", "names say", "left out: 1 no known"],
        ),
        (["a.jsonl"], ["1 file, ", "about 5.0% of the text is held out", "documents, by their texts' hashes"]),
        ([f"{i}.txt" for i in range(20)], ["to train on 19 files", "whole files, by their names' hashes"]),
    ],
)
def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys, complaint, names, parts):
    text = tmp_path / "text"
    text.mkdir()
    for name in names:
        (text / name).write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    command = ["data", "prepare", str(tmp_path / "out"), "--data.path", str(text), "--dry-run"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts) and "nothing was written" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert "tokenizer=nowhere.json: no such file" in complaint(*command, "--data.tokenizer", "nowhere.json")


def test_shards_from_before_still_mean_what_they_meant(config, tmp_path):
    prepare(config, tmp_path / "out")
    folder = tmp_path / "out"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    before = open_prepared(folder)
    del index["rule"], index["sha256"]
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    sums = []
    for path in (folder / f"{shard['name']}.json" for side in ("train", "held_out") for shard in index["splits"][side]):
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: fields[name] for name in OLD_RECORD}
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        sums.append(fields["bin_sha256"] + fields["offsets_sha256"])
    data = prepared(DataConfig(path=str(folder), cache_dir=config.cache_dir))
    assert _texts(data.train) == _texts(before.train) and _texts(data.held_out) == _texts(before.held_out)
    # A run that was begun on them goes on.
    assert data.fingerprint == hashlib.sha256(json.dumps([index, sums], indent=1).encode() + b"\n").hexdigest()[:32]
    assert data.notes[0].startswith("text: to train on")


def test_the_cache_is_used_and_follows_the_files(config, tmp_path, monkeypatch):
    cached = DataConfig(path=config.path, shard_bytes=1000, cache_dir=str(tmp_path / "cache"))
    first = prepared(cached)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "prepare", None)
        assert prepared(cached).fingerprint == first.fingerprint
        assert prepared(cached).folder == first.folder
    path = Path(config.path, "part-000.jsonl")
    blob = path.read_bytes()
    path.write_bytes(blob.replace(b"file 0", b"file X"))
    os.utime(path, ns=(0, 0))
    changed = prepared(cached)
    assert changed.folder != first.folder and changed.fingerprint != first.fingerprint


def test_a_run_on_files_may_go_on_with_their_shards(config, tmp_path):
    prepare(config, tmp_path / "out")
    shards = prepared(DataConfig(path=str(tmp_path / "out"), cache_dir=config.cache_dir))
    moved = shutil.copytree(config.path, tmp_path / "moved")
    assert shards.fingerprint == prepared(config).fingerprint
    assert shards.fingerprint == prepared(dataclasses.replace(config, path=str(moved))).fingerprint


def test_a_prepared_folder_as_path(config, tmp_path):
    prepare(config, tmp_path / "out")
    ready = DataConfig(path=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert prepared(ready).fingerprint == open_prepared(tmp_path / "out").fingerprint
    assert not (tmp_path / "cache" / "shards").exists()
    for options in ({"held_out_path": config.path}, {"exclude": ("*.md",)}):
        with pytest.raises(InputError, match="has its own held-out text"):
            prepared(DataConfig(path=str(tmp_path / "out"), **options))
    blob = (tmp_path / "out" / "index.json").read_text(encoding="utf-8")
    (tmp_path / "out" / "index.json").write_text(blob[:-30], encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        prepared(ready)


def test_stdlib_is_never_a_folder_of_that_name(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(config, "stdlib")
    monkeypatch.setattr("sysconfig.get_path", lambda name: config.path)
    Path(config.path, "a.py").write_text("one", encoding="utf-8")
    Path(config.path, "b.py").write_text("two", encoding="utf-8")
    assert prepared(DataConfig(cache_dir=str(tmp_path / "cache"))).train.documents == 2


def test_a_folder_of_another_tokenizer_is_refused(config, tmp_path, monkeypatch):
    prepare(config, tmp_path / "out")
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "another")
    with pytest.raises(InputError, match=r"tokenizer=bytes: .*prepared with the tokenizer bytes"):
        prepared(DataConfig(path=str(tmp_path / "out")))


def test_parts_on_one_machine_do_not_wait_for_each_other(config, tmp_path, monkeypatch):
    def write_while_another_part_begins(job, **options):
        (memory,) = (tmp_path / "sums" / "sums").glob("*.lock")
        with filelock.FileLock(memory, timeout=5):
            return write_unit(job, **options)

    monkeypatch.setattr(preparing, "write_unit", write_while_another_part_begins)
    assert prepare(config, tmp_path / "out").written > 0


def test_what_is_foreseen_is_said_once(tmp_path):
    """Also what is left out of the text, of each part of a mixture too."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "empty.py").touch()
        for number in range(4):
            (tmp_path / name / f"{number}.py").write_text("x = 1\n" * 200, encoding="utf-8")
    common = {"tokenizer": "bytes", "cache_dir": str(tmp_path / "cache")}
    parts = [f"{name}=0.5:{tmp_path / name}" for name in ("a", "b")]
    for config in (DataConfig(path=str(tmp_path / "a"), **common), DataConfig(mixture=",".join(parts), **common)):
        notes = foresee(config).notes
        assert len(set(notes)) == len(notes) and any("left out: 1 empty" in note for note in notes)
