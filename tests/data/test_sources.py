import bz2
import gzip
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mom_jax.data.sources import resolve
from mom_jax.errors import InputError, install

DOCUMENTS = ["first\nof two lines", "naïve 漢字 🎉", "", "last"]
TEXT = st.text(st.characters(codec="utf-8"))


def _read(spec, field="text"):
    return [text for source in resolve(str(spec)) for text in source.documents(field)]


def _lines(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def _fails(spec, *parts, field="text"):
    """The reading of ``spec`` fails with one line that holds all ``parts``."""
    with pytest.raises(InputError) as caught:
        _read(spec, field)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return caught.value


def _packed(suffix, blob):
    if suffix == ".zst":
        return pa.compress(blob, codec="zstd", asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix](blob)


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path, suffix, packing):
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(_packed(packing, b"\n" + _lines(DOCUMENTS)))
    assert _read(path) == [text for text in DOCUMENTS if text]


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".zst"])
def test_a_text_file_is_one_document(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(_packed(packing, "\ufefféa\r\nb\n".encode()))
    assert _read(path) == ["éa\r\nb\n"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT | st.none(), min_size=1), st.integers(1, 5))
def test_parquet(tmp_path, documents, rows):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": pa.array(documents, pa.string()), "n": range(len(documents))}), path, row_group_size=rows
    )
    assert _read(path) == [text for text in documents if text]


def test_folders_files_and_globs(tmp_path):
    for name in (
        "b.txt",
        "a/z.md",
        "a/y.jsonl.gz",
        ".hidden.txt",
        ".git/x.txt",
        "a/__pycache__/x.py",
        "photo.png",
        "noise.bin",
        "void.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            _packed(".gz", _lines(["packed"])) if name.endswith(".gz") else b"" if "void" in name else name.encode()
        )
    assert [s.name for s in resolve(str(tmp_path))] == ["a/y.jsonl.gz", "a/z.md", "b.txt"]
    assert _read(tmp_path) == ["packed", "a/z.md", "b.txt"]
    assert [s.name for s in resolve(f"{tmp_path}/**/*.md")] == ["a/z.md"]
    assert [s.name for s in resolve(f"{tmp_path}/*.bin")] == ["noise.bin"]
    assert [s.name for s in resolve(str(tmp_path / "noise.bin"))] == ["noise.bin"]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home", encoding="utf-8")
    assert _read("~/a.txt") == ["home"]


def test_stdlib_is_readable_text_of_the_library_alone():
    sources = resolve("stdlib")
    names = [source.name for source in sources]
    assert names == sorted(names) and {"os.py", "json/decoder.py"} <= set(names)
    assert not any(part in name for name in names for part in ("site-packages", "dist-packages"))
    for source in sources:
        assert len(list(source.documents("text"))) == 1


@pytest.mark.parametrize("spec", ["absent.txt", "absent/folder/", "*.txt", "two words", "~nobody-of-that-name/a.txt"])
def test_what_is_not_there(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    error = _fails(spec, "no")
    assert error.field == "path"


def test_empty_text(tmp_path):
    (tmp_path / "a.txt").touch()
    _fails(tmp_path / "a.txt", "a.txt", "is empty")
    (tmp_path / "b.txt").touch()
    _fails(tmp_path, str(tmp_path), "only empty files")
    (tmp_path / "sub").mkdir()
    _fails(tmp_path / "sub", "no file that reads as text")


def test_a_device_is_no_text():
    _fails("/dev/zero", "/dev/zero", "neither a file nor a folder")


@pytest.fixture
def as_nobody():
    """A folder that everyone may enter, and a process that is not root, who may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        yield Path(folder), (lambda: os.seteuid(65534)) if root else (lambda: None)
        if root:
            os.seteuid(0)


def test_unreadable(as_nobody):
    folder, leave_root = as_nobody
    (folder / "sub").mkdir()
    for path in (folder / "a.txt", folder / "sub" / "b.txt"):
        path.write_text("secret", encoding="utf-8")
    (folder / "a.txt").chmod(0)
    (folder / "sub").chmod(0o600)
    leave_root()
    _fails(folder / "a.txt", "a.txt", "Permission denied")
    _fails(folder / "sub" / "b.txt", "b.txt", "Permission denied")
    _fails(folder, "sub", "Permission denied")


@pytest.mark.parametrize(("blob", "reason"), [(b"one\ntwo\0", "NUL"), (b"one\n\xff\xfe", "not UTF-8")])
def test_binary(tmp_path, blob, reason):
    (tmp_path / "a.txt").write_bytes(blob)
    _fails(tmp_path / "a.txt", "a.txt:2", reason)


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("stem", ["a.jsonl", "a.txt"])
def test_truncated_archives(tmp_path, stem, packing):
    path = tmp_path / (stem + packing)
    blob = _packed(packing, _lines([os.urandom(50).hex() for _ in range(2000)]))
    path.write_bytes(blob[: len(blob) // 2])
    _fails(path, path.name)


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
def test_what_is_no_archive(tmp_path, packing):
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(_lines(DOCUMENTS))
    _fails(path, path.name, "cannot be read")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut of', "truncated"),
        (b"[1]", "not an object"),
        (b'{"other": 1}', "which has other"),
        (b"{}", "no fields"),
        (b'{"text": 3}', "not a string"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "not a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(_lines(["fine", "fine"]) + line)
    _fails(tmp_path / "a.jsonl", "a.jsonl:3", reason)


def test_parquet_that_is_none_or_half(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["words"] * 1000}), path)
    blob = path.read_bytes()
    for broken in (blob[: len(blob) // 2], b"plain text"):
        path.write_bytes(broken)
        _fails(path, "a.parquet", "not a whole parquet file")
    # A whole footer over damaged pages.
    path.write_bytes(blob[:4] + bytes(len(blob) // 2) + blob[4 + len(blob) // 2 :])
    _fails(path, "a.parquet", "not a whole parquet file")


def test_parquet_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["words"], "n": [1]}), path)
    _fails(path, "text_field=text", "columns body, n")
    _fails(path, "text_field=n", "int64", field="n")
    assert _read(path, "body") == ["words"]


class _Rows:
    """Stands in for a streamed dataset of two files."""

    num_shards = 2

    def __init__(self, rows):
        self.rows = rows

    def shard(self, num_shards, index):
        return self.rows[index::num_shards]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package datasets; ``hub.load`` decides what it serves."""
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    calls = types.SimpleNamespace(asked=[], load=lambda: _Rows([{"text": f"row {i}"} for i in range(6)]))

    def load_dataset(name, subset, *, split, streaming):
        calls.asked.append((name, subset, split, streaming))
        return calls.load()

    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hf:org/name", ("org/name", None, "train")),
        ("hf:org/name:en", ("org/name", "en", "train")),
        ("hf:org/name:en:test", ("org/name", "en", "test")),
        ("hf:name::test", ("name", None, "test")),
    ],
)
def test_hub_datasets_are_streamed_file_by_file(hub, tmp_path, monkeypatch, spec, asked):
    monkeypatch.chdir(tmp_path)
    assert _read(spec) == ["row 0", "row 2", "row 4", "row 1", "row 3", "row 5"]
    assert set(hub.asked) == {(*asked, True)}


def test_hub_mistakes(hub):
    _fails("hf:", "hf:NAME[:config][:split]")
    _fails("hf:a:b:c:d", "hf:NAME[:config][:split]")
    _fails("hf:a", "text_field=body", "columns text", field="body")
    hub.load = lambda: _Rows([{"text": 1}, {"text": 2}])
    _fails("hf:a", "row 0", "not text")


def test_hub_without_network(hub):
    def refuse():
        raise ConnectionError("no route\nto host")

    hub.load = refuse
    _fails("hf:a", "hf:a", "no route")


def test_a_stream_that_breaks(hub):
    class Broken(_Rows):
        def shard(self, num_shards, index):
            yield {"text": "one"}
            raise ConnectionError("reset")

    hub.load = lambda: Broken([])
    _fails("hf:a", "hf:a", "reset", "run again to resume")


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _fails("hf:org/name", install("hf"))


def test_a_missing_path_is_never_a_hub_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _fails("org/name", "no such file or folder", "hf:org/name")
    _fails("name", "no such file or folder")
    (tmp_path / "org" / "name").mkdir(parents=True)
    _fails("hf:org/name", "org/name is here")
    assert not hub.asked
