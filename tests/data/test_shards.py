import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import full_disk
from support.shards import documents_of

from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare
from mom_jax.data.shards import (
    Shard,
    TokenStream,
    open_prepared,
    token_dtype,
)
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.data.writing import write_record, write_shards
from mom_jax.errors import InputError


def _write(folder, name, texts, tokenizer=None):
    texts = ((name, text) for text in texts)
    info = dataclasses.replace(write_shards(folder, [name], texts, tokenizer or ByteTokenizer())[name], key="key")
    write_record(folder, name, info)
    return info


def _refused(folder, *parts):
    with pytest.raises(InputError) as caught:
        open_prepared(folder)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_format_is_what_it_says(folder):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    assert index["tokenizer"] == "bytes" and index["dtype"] == "<u2" and index["eos_id"] == 257
    assert len(index["splits"]["train"]) > 1 and index["splits"]["held_out"]
    for split in ("train", "held_out"):
        for name in (shard["name"] for shard in index["splits"][split]):
            info = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            tokens = np.fromfile(folder / f"{name}.bin", "<u2")
            offsets = np.fromfile(folder / f"{name}.offsets", "<u8")
            assert len(tokens) == info["tokens"] == offsets[-1] == info["text_bytes"] + info["documents"]
            assert (np.flatnonzero(tokens == 257) + 1).tolist() == offsets[1:].tolist()


@pytest.mark.parametrize(
    ("name", "written", "altered"),
    [
        ("index.json", '"eos_id": 257', '"eos_id": 256'),
        ("held_out-00000.json", '"text_bytes": ', '"text_bytes": 1'),
        ("train-00000.json", '"skipped": 0', '"skmpped": 0'),
    ],
)
def test_records_cover_themselves(name, written, altered, folder):
    """What no sum of another file covers; a record without a sum is an earlier version's."""
    path = folder / name
    told = path.read_text(encoding="utf-8")
    path.write_text(told.replace(written, altered), encoding="utf-8")
    _refused(folder, name)
    fields = json.loads(told)
    del fields["sha256"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    open_prepared(folder)


@pytest.mark.parametrize("side", ["train", "held_out"])
def test_a_shard_is_listed_once(side, folder):
    """Twice on one side it would count double; on both, what is trained on would be held out."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    del index["sha256"]
    index["splits"][side].append(index["splits"]["train"][0])
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    _refused(folder, "index.json", "lists a shard twice")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(264, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_token_width(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)


class _Wide(ByteTokenizer):
    vocab_size = 70_000
    eos_id = 69_999


def test_wide_tokens(tmp_path):
    info = _write(tmp_path, "train-00000", ["ab"], _Wide())
    assert np.fromfile(tmp_path / "train-00000.bin", "<u4").tolist() == [97, 98, 69_999]
    assert dataclasses.astuple(info)[:4] == ("key", 3, 1, 2)


@pytest.mark.parametrize("suffix", [".bin", ".offsets"])
@pytest.mark.parametrize("change", [-1, 2])
def test_a_truncated_or_grown_shard_is_refused(folder, suffix, change):
    path = folder / f"train-00001{suffix}"
    blob = path.read_bytes()
    path.write_bytes(blob[:change] if change < 0 else blob + bytes(change))
    found, size = path.stat().st_size, len(blob)
    _refused(folder, f"path={path}: has {found:,} bytes instead of {size:,}", "delete it")


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.offsets"])
def test_a_missing_file_of_a_shard_is_refused(folder, name):
    (folder / name).unlink()
    _refused(folder, f"path={folder / name}: is missing")


def test_an_unfinished_folder_says_how_to_finish(folder):
    (folder / "train-00002.json").unlink()
    _refused(folder, "train-00002 is not prepared yet", "--shard")


def test_a_shard_of_other_data_is_refused(folder):
    path = folder / "train-00000.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["sha256"]
    path.write_text(json.dumps({**record, "key": "0" * 32}), encoding="utf-8")
    _refused(folder, "train-00000.json", "does not belong")


def test_index_mistakes(folder, tmp_path):
    _refused(tmp_path / "absent", "no index.json")
    index = (folder / "index.json").read_text(encoding="utf-8")
    (folder / "index.json").write_text(index[:-20], encoding="utf-8")
    _refused(folder, "index.json", "is damaged")
    (folder / "index.json").write_text(index.replace('"version": 1', '"version": 99'), encoding="utf-8")
    _refused(folder, "version 99")
    (folder / "index.json").write_text("[]", encoding="utf-8")
    _refused(folder, "index.json", "is damaged")


def test_the_fingerprint_follows_the_text(corpus, tmp_path):
    prints = []
    for number, words in enumerate((["one", "two"], ["one", "twi"], ["one", "two"])):
        text = corpus([[w] for w in words], f"corpus{number}")
        prepare(DataConfig(path=str(text)), tmp_path / f"out{number}")
        prints.append(open_prepared(tmp_path / f"out{number}").fingerprint)
    assert prints[0] == prints[2] != prints[1]


@given(st.data())
def test_reading_any_span(folder_of_documents, data):
    stream, documents = folder_of_documents
    everything = np.concatenate(documents)
    firsts = np.zeros(len(everything), bool)
    firsts[np.cumsum([0, *(len(d) for d in documents[:-1])])] = True
    assert len(stream) == len(everything)
    start = data.draw(st.integers(0, len(everything)))
    stop = data.draw(st.integers(start, len(everything) + 5))
    ids, is_first = stream.read(start, stop)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, everything[start:stop])
    np.testing.assert_array_equal(is_first, firsts[start:stop])


@pytest.fixture(scope="module")
def folder_of_documents(tmp_path_factory):
    """A stream over shards of which one is empty, and its documents."""
    folder = tmp_path_factory.mktemp("stream")
    shards = [["a" * 5, "b"], [], ["c" * 2, "d" * 9, "e"], ["f"]]
    for number, documents in enumerate(shards):
        _write(folder, f"train-{number:05d}", documents)
    stream = TokenStream([Shard(folder, f"train-{i:05d}", "key", np.dtype("<u2")) for i in range(len(shards))])
    ids = [np.array([*text.encode(), 257]) for documents in shards for text in documents]
    assert [d.tolist() for d in documents_of(stream)] == [d.tolist() for d in ids]
    assert (stream.documents, stream.text_bytes) == (6, 19)
    return stream, ids


def test_a_failed_write_leaves_nothing(tmp_path):
    def documents():
        yield "fine"
        raise InputError("path", "x", "broken")

    with pytest.raises(InputError):
        _write(tmp_path, "train-00000", documents())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path, "train-00000", ["text"])
    assert list(tmp_path.iterdir()) == []
