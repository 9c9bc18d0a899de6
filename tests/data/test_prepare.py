import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mom_jax.data.prepare as preparing
from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare, prepared
from mom_jax.data.shards import open_prepared
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FILES = [[f"file {i} document {j} " * 5 for j in range(5)] for i in range(12)]


def _contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _texts(stream):
    return [ByteTokenizer().decode(ids[:-1]) for ids in stream.iterate_documents()]


@pytest.fixture
def config(corpus):
    return DataConfig(path=str(corpus(FILES)), held_out_fraction=0.3, shard_bytes=1000)


@settings(max_examples=40)
@given(st.lists(st.lists(TEXT, max_size=4), min_size=2, max_size=6), st.integers(1, 200), st.floats(0.05, 0.9))
def test_reading_back_gives_the_documents(files, shard_bytes, fraction):
    files = [[*documents, f"never empty {i}"] for i, documents in enumerate(files)]
    with tempfile.TemporaryDirectory() as folder:
        for number, documents in enumerate(files):
            pq.write_table(pa.table({"text": documents}), f"{folder}/{number}.parquet")
        config = DataConfig(path=f"{folder}/*.parquet", shard_bytes=shard_bytes, held_out_fraction=fraction)
        summary = prepare(config, f"{folder}/out", progress=False)
        data = open_prepared(f"{folder}/out")
        data.verify()
        found = [_texts(data.train), _texts(data.held_out)]
    wanted = [[text for text in documents if text] for documents in files]
    assert all(found)
    # Whole files, each on one side, in the order of their names.
    for texts in found:
        assert texts == list(itertools.chain(*(d for d in wanted if d[-1] in texts)))
    assert sorted(found[0] + found[1]) == sorted(itertools.chain(*wanted))
    assert summary.documents == data.train.documents + data.held_out.documents == sum(map(len, wanted))
    assert summary.text_bytes == sum(len(t.encode()) for t in itertools.chain(*wanted))
    assert summary.tokens == summary.text_bytes + summary.documents


def test_the_same_bytes_whatever_the_workers_and_parts(config, tmp_path):
    one = prepare(config, tmp_path / "one", workers=1)
    assert one.written > 4 and (one.kept, one.missing) == (0, 0)
    prepare(config, tmp_path / "two", workers=2)
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
    open_prepared(merged).verify()


KILLED = """
import os, signal, sys
from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare
from mom_jax.data.tokenizers import ByteTokenizer
encode, calls = ByteTokenizer.encode, []
def kill_at_document_23(self, text):
    calls.append(text)
    if len(calls) == 23:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, text)
ByteTokenizer.encode = kill_at_document_23
prepare(DataConfig(path=sys.argv[1], held_out_fraction=0.3, shard_bytes=1000), sys.argv[2], workers=1)
"""


def test_a_killed_run_resumes(config, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, config.path, str(tmp_path / "out")], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert [name for name in _contents(tmp_path / "out") if name.endswith(".tmp")]
    finished = {name: blob for name, blob in _contents(tmp_path / "out").items() if name.endswith(".bin")}
    again = prepare(config, tmp_path / "out", workers=1)
    assert again.kept == len(finished) >= 2 and again.written > 0
    prepare(config, tmp_path / "clean", workers=1)
    assert _contents(tmp_path / "out") == _contents(tmp_path / "clean")
    assert finished.items() <= _contents(tmp_path / "clean").items()


def test_finished_shards_are_not_redone(config, tmp_path, monkeypatch):
    prepare(config, tmp_path / "out")
    monkeypatch.setattr(preparing, "write_shard", None)
    assert prepare(config, tmp_path / "out").written == 0


def test_a_damaged_shard_is_redone(config, tmp_path):
    prepare(config, tmp_path / "out")
    before = _contents(tmp_path / "out")
    (tmp_path / "out" / "train-00001.bin").write_bytes(b"half")
    assert prepare(config, tmp_path / "out").written == 1
    assert _contents(tmp_path / "out") == before


def test_mistakes_in_the_text_reach_us_from_a_worker(config, tmp_path):
    Path(config.path, "part-003.jsonl").write_text('{"text": "fine"}\n{"text', encoding="utf-8")
    with pytest.raises(InputError, match=r"part-003\.jsonl:2") as caught:
        prepare(config, tmp_path / "out", workers=2)
    assert caught.value.field == "path"
    assert not [name for name in _contents(tmp_path / "out") if name.endswith(".tmp")]


def test_a_killed_worker_is_one_line():
    with pytest.raises(InputError, match="workers=2: a worker was killed"):
        list(preparing._run(os._exit, [3, 3, 3], 2))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_bad_part(config, tmp_path, shard):
    with pytest.raises(InputError, match="shard="):
        prepare(config, tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


def test_bad_workers(config, tmp_path):
    with pytest.raises(InputError, match="workers=0"):
        prepare(config, tmp_path / "out", workers=0)


def test_the_folder_must_be_ours(config, corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        prepare(config, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be made"):
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
    prepare(DataConfig(path=str(a), held_out_path=str(empty)), tmp_path / "out")
    with pytest.raises(InputError, match="no held-out text"):
        open_prepared(tmp_path / "out")


def test_more_files_move_none(corpus, tmp_path):
    sides = []
    for count in (10, 30):
        text = corpus([[f"file {i}"] for i in range(count)], f"c{count}")
        prepare(DataConfig(path=str(text), held_out_fraction=0.3), tmp_path / f"out{count}")
        sides.append(set(_texts(open_prepared(tmp_path / f"out{count}").held_out)))
    assert sides[0] and sides[0] == {t for t in sides[1] if int(t.split()[1]) < 10}


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


def test_a_damaged_cache_heals(config, tmp_path):
    cached = DataConfig(path=config.path, shard_bytes=1000, cache_dir=str(tmp_path / "cache"))
    first = prepared(cached)
    (first.folder / "train-00000.bin").write_bytes(b"")
    assert prepared(cached).fingerprint == first.fingerprint


def test_a_prepared_folder_as_path(config, tmp_path):
    prepare(config, tmp_path / "out")
    ready = DataConfig(path=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert prepared(ready).fingerprint == open_prepared(tmp_path / "out").fingerprint
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="has its own held-out text"):
        prepared(DataConfig(path=str(tmp_path / "out"), held_out_path=config.path))
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
    assert prepared(DataConfig(cache_dir=str(tmp_path / "cache"))).train.documents == 1


def test_a_folder_of_another_tokenizer_is_refused(config, tmp_path, monkeypatch):
    prepare(config, tmp_path / "out")
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "another")
    with pytest.raises(InputError, match=r"tokenizer=bytes: .*prepared with the tokenizer bytes"):
        prepared(DataConfig(path=str(tmp_path / "out")))
