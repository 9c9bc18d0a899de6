"""Text at addresses: copied from fsspec's file systems, in memory and from a server on this machine."""

import functools
import http.server
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare, prepared
from mom_jax.data.remote import local_copy
from mom_jax.errors import InputError

TEXT = "a line of text that is a little longer\n" * 200


@pytest.fixture
def memory():
    """fsspec's memory, with a folder of three texts."""
    system = fsspec.filesystem("memory")
    for name in ("train-a.txt", "train-b.txt", "sub/valid.txt"):
        system.pipe(f"/bucket/corpus/{name}", (name + TEXT).encode())
    yield system
    system.rm("/bucket", recursive=True)


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """The tests read what is on stderr."""


@pytest.fixture
def server(tmp_path):
    """The address of a folder that a server shows."""
    handler = functools.partial(Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def files(place):
    return sorted(str(path.relative_to(place)) for path in Path(place).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("memory://bucket/corpus", [".copied.json", "sub/valid.txt", "train-a.txt", "train-b.txt"]),
        ("memory://bucket/corpus/*.txt", [".copied.json", "train-a.txt", "train-b.txt"]),
    ],
)
def test_a_folder_or_glob_is_copied_and_kept_up_to_date(address, names, memory, tmp_path, monkeypatch):
    place = local_copy(address, str(tmp_path), "path")
    folder = Path(place).parent if "*" in place else Path(place)
    assert files(folder) == names and place.endswith("*.txt") == ("*" in address)
    fetched = []
    get = memory.get_file
    monkeypatch.setattr(type(memory), "get_file", lambda self, name, to: fetched.append(name) or get(name, to))
    assert local_copy(address, str(tmp_path), "path") == place and fetched == []
    memory.pipe("/bucket/corpus/train-b.txt", b"other")
    memory.rm("/bucket/corpus/train-a.txt")
    local_copy(address, str(tmp_path), "path")
    assert [name.rpartition("/")[2] for name in fetched] == ["train-b.txt"]
    assert (folder / "train-b.txt").read_bytes() == b"other" and not (folder / "train-a.txt").exists()


def test_text_and_prepared_shards_at_an_address_are_those_of_the_local_ones(memory, tmp_path):
    config = DataConfig(path="memory://bucket/corpus", cache_dir=str(tmp_path / "cache"))
    assert config.anchored().path == config.path, "it means the same from everywhere"
    data = prepared(config, workers=1, progress=False)
    local = tmp_path / "local"
    memory.get("/bucket/corpus", str(local), recursive=True)
    shards = tmp_path / "shards"
    prepare(DataConfig(path=str(local), cache_dir=str(tmp_path / "cache")), shards, workers=1, progress=False)
    memory.put(str(shards), "/bucket/shards", recursive=True)
    remote = prepared(DataConfig(path="memory://bucket/shards", cache_dir=str(tmp_path / "cache")), progress=False)
    assert data.fingerprint == remote.fingerprint and data.rule == "names"


def test_a_file_of_a_server(server, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "words"}\n' * 9, encoding="utf-8")
    place = local_copy(f"{server}/texts.jsonl", str(tmp_path / "cache"), "path")
    assert place.endswith("/texts.jsonl") and Path(place).read_bytes() == (tmp_path / "texts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none", "nothing is there"),
        ("memory://bucket/corpus/*.json", "nothing is there"),
        ("gs://bucket/x", r"the package for gs:// addresses is missing: .*pip install .*\[gcs\]"),
        ("s3://bucket/x", r"the package for s3:// addresses is missing: .*pip install .*\[s3\]"),
        ("nonsense://bucket/x", "nonsense:// is no file system"),
        ("file:///data/a.txt", "give the path itself: /data/a.txt"),
    ],
)
def test_what_cannot_be_read_is_refused(address, message, memory, tmp_path, monkeypatch):
    for package in ("gcsfs", "s3fs"):  # as where they are not installed
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"^(data\.)?path={address.replace('*', '.')}: .*{message}"):
        prepared(DataConfig(path=address, cache_dir=str(tmp_path)), progress=False)


def test_a_server_that_does_not_answer(server, tmp_path, complaint):
    address = f"{server}/gone.txt"
    assert f"path={address}: " in complaint("data", "prepare", tmp_path / "out", "--data.path", address)
    assert not (tmp_path / "out").exists()
