"""Shards that are not what was written are noticed, once on each machine."""

import hashlib
import json
import os

import numpy as np
import pytest
from support.damage import flip_the_middle

import mom_jax.data.sums as sums_module
from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare, prepared
from mom_jax.data.shards import open_prepared
from mom_jax.data.sums import Sums, stamp, sum_of
from mom_jax.data.verification import verify
from mom_jax.errors import InputError
from mom_jax.files import write_sealed


@pytest.fixture
def reads(monkeypatch):
    """What is read to be summed; every file counts as settled."""
    monkeypatch.setattr(sums_module, "_SETTLED", -1.0)
    read = []
    monkeypatch.setattr(sums_module, "sum_of", lambda place: read.append(place) or sum_of(place))
    return read


def _open(folder, tmp_path):
    return prepared(DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache")))


def _zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["train-00001.bin", "held_out-00000.offsets"])
@pytest.mark.parametrize("damage", [flip_the_middle, _zeros])
@pytest.mark.parametrize("opened_before", [False, True])
def test_damage_is_named_with_the_remedy(folder, tmp_path, reads, name, damage, opened_before):
    if opened_before:
        _open(folder, tmp_path)
    times = os.stat(folder / name)
    damage(folder / name)
    os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(
            InputError, match=rf"^path=.*{name}: is corrupt .*run the command that prepared the data again"
        ):
            _open(folder, tmp_path)


@pytest.mark.parametrize("damage", [flip_the_middle, lambda path: path.write_bytes(b"half")], ids=["a bit", "half"])
def test_the_command_that_prepared_the_data_mends_it(damage, corpus, tmp_path, reads):
    text = corpus([[f"file {i} " * 9] for i in range(12)])
    config = DataConfig(path=str(text), held_out_fraction=0.3, shard_bytes=300, cache_dir=str(tmp_path / "cache"))
    prepare(config, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    damage(tmp_path / "out" / "train-00001.bin")
    assert prepare(config, tmp_path / "out").written == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("damage", [_zeros, lambda path: path.write_bytes(b"")], ids=["zeros", "nothing"])
def test_a_cache_mends_itself(damage, corpus, tmp_path, reads):
    config = DataConfig(path=str(corpus([["one"], ["two"], ["three"]])), cache_dir=str(tmp_path / "cache"))
    first = prepared(config)
    damage(first.folder / "train-00000.bin")
    assert prepared(config).fingerprint == first.fingerprint
    verify(open_prepared(first.folder), str(tmp_path / "another"))


def test_every_file_is_read_once(folder, tmp_path, reads):
    count = len(list(folder.glob("*.bin"))) + len(list(folder.glob("*.offsets")))
    _open(folder, tmp_path)
    assert len(reads) == count
    _open(folder, tmp_path)
    assert len(reads) == count
    path = folder / "train-00000.bin"
    os.utime(path, ns=(5, 5))
    _open(folder, tmp_path)
    assert reads[count:] == [(str(path), None)]


def test_what_was_just_written_is_not_remembered(tmp_path):
    path = tmp_path / "a"
    path.write_text("one", encoding="utf-8")
    sums = Sums(str(tmp_path / "cache"), tmp_path)
    with sums.opened():
        first = list(sums.of([(str(path), None)]))
        assert sums.recall((str(path), None)) is None
        sums.remember((str(path), None), [stamp(path)[0], 1, 1], first[0])  # an older state of the file
        assert sums.recall((str(path), None)) is None


@pytest.mark.parametrize("blob", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 99_999])
def test_a_damaged_memory_costs_a_second_reading(folder, tmp_path, reads, blob):
    _open(folder, tmp_path)
    (memory,) = (tmp_path / "cache" / "sums").glob("*.json")
    memory.write_bytes(blob)
    count = len(reads)
    _open(folder, tmp_path)
    assert len(reads) == 2 * count


def test_a_cache_that_cannot_be_written_costs_time_alone(folder, tmp_path, reads):
    (tmp_path / "cache").write_text("a file where a folder should be", encoding="utf-8")
    count = len(_open(folder, tmp_path).shards)
    _open(folder, tmp_path)
    assert len(reads) == 4 * count


def test_sums_that_fit_do_not_excuse_tokens_outside_the_vocabulary(folder, tmp_path):
    path, record = folder / "train-00000.bin", folder / "train-00000.json"
    tokens = np.fromfile(path, "<u2")
    tokens[3] = 264
    path.write_bytes(tokens.tobytes())
    fields = json.loads(record.read_text(encoding="utf-8"))
    del fields["sha256"]
    write_sealed(record, fields | {"bin_sha256": hashlib.sha256(tokens.tobytes()).hexdigest()})
    with pytest.raises(InputError, match=r"train-00000\.bin: holds the token 264, but the vocabulary ends at 263"):
        _open(folder, tmp_path)
