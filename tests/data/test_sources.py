import bz2
import gzip
import importlib.machinery
import io
import json
import lzma
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

from mom_jax.data.config import DataConfig
from mom_jax.data.documents import Skips
from mom_jax.data.json_documents import stop
from mom_jax.data.opening import read_lines
from mom_jax.data.sources import find_sources
from mom_jax.errors import InputError, install

DOCUMENTS = ["first\nof two lines", "naïve 漢字 🎉", "", "last"]
TEXT = st.text(st.characters(codec="utf-8"))


def _found(spec, field="text", **options):
    return find_sources(DataConfig(path=str(spec), text_field=field, **options))


def _names(spec, **options):
    return [source.name for source in _found(spec, **options).sources]


def _read(spec, field="text", **options):
    return [text for source in _found(spec, field, **options).sources for text in source.documents(field, stop)]


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
    if suffix.lower().startswith(".zst"):
        return pa.compress(blob, codec="zstd", asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix.lower()](blob)


PACKINGS = ["", ".gz", ".bz2", ".zst", ".zstd", ".xz", ".GZ"]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL", ".Json"])
def test_json_lines(tmp_path, suffix, packing):
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(_packed(packing, b"\n" + _lines(DOCUMENTS)))
    assert _read(path) == [text for text in DOCUMENTS if text]


@pytest.mark.parametrize("packing", PACKINGS)
def test_archives_in_several_pieces_are_read_to_their_end(tmp_path, packing):
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(_packed(packing, _lines(["one", "two"])) + _packed(packing, _lines(["three"])))
    assert _read(path) == ["one", "two", "three"]


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_arrays_of_objects(tmp_path, packing, mark, indent, suffix):
    rows = [{"text": text, "more": [{"text": 1}]} for text in DOCUMENTS]
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(_packed(packing, mark + b" \n" * bool(mark) + json.dumps(rows, indent=indent).encode() + b"\n"))
    assert _read(path) == _read(tmp_path, on_error="skip") == [text for text in DOCUMENTS if text]


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_over_several_lines(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps({"text": text}, indent=indent) for text in DOCUMENTS), encoding="utf-8")
    assert _read(path) == [text for text in DOCUMENTS if text]


def test_arrays_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("mom_jax.data.json_documents._CHUNK", 7)
    texts = [chr(97 + i % 26) * i + "é" for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False), "utf-8")
    assert _read(tmp_path / "a.json") == texts
    (tmp_path / "b.jsonl").write_bytes(_lines(texts))
    assert _read(tmp_path / "b.jsonl") == texts


@pytest.mark.parametrize(
    ("name", "blob", "reason"),
    [
        ("a.json", b'[{"text": "a"}, {"text": "b"', "a.json: record 2 is not JSON"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json, record 2: is JSON, but not an object"),
        ("a.json", b'[{"text": "a"}, {"body": "b"}]', "a.json, record 2, which has body"),
        ("a.json", b"[" * 99_999, "a.json: record 1 is not JSON"),
        ("a.json", b'[{"text": "\xff"}]', "a.json: record 1 is not JSON"),
        ("a.json", b"[", "a.json: record 1 is not JSON"),
        ("a.json", b"{}", "a.json:1, which has no fields"),
        ("a.json", b'{"text":\n"a"}\n{"text":', "a.json: record 2 is not JSON"),
        ("a.arrow", b"ARROW1\0\0", "a.arrow: is not a whole Arrow file"),
        ("a.arrow", b"plain text", "a.arrow: is not a whole Arrow file"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "a.arrow: is not a whole Arrow file"),
        ("a.parquet.gz", b"x", "unpack it"),
        ("a.txt", b"one\ntwo\0", "a.txt:2: holds a NUL byte"),
        ("a.txt", b"one\n\xff\xfe", "a.txt:2: is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, blob, reason):
    (tmp_path / name).write_bytes(blob)
    _fails(tmp_path / name, reason)


@pytest.mark.parametrize("packing", PACKINGS)
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


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
        pa.binary(),
        pa.large_binary(),
    ],
)
def test_kinds_of_columns(tmp_path, kind):
    texts = [*DOCUMENTS, None, "again", "again"]
    is_bytes = not pa.types.is_dictionary(kind) and "binary" in str(kind)
    values = pa.array(
        [text.encode() if is_bytes and text else text for text in texts], pa.binary() if is_bytes else pa.string()
    )
    if pa.types.is_dictionary(kind):
        coded = values.dictionary_encode()
        column = pa.DictionaryArray.from_arrays(
            coded.indices.cast(kind.index_type), coded.dictionary.cast(kind.value_type)
        )
    else:
        column = values.cast(kind)
    table = pa.table({"n": range(len(texts)), "text": column})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)
    wanted = [text for text in texts if text]
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        assert _read(tmp_path / name) == wanted
    assert _read(tmp_path) == wanted * 3


def test_rows_that_are_no_text(tmp_path):
    pq.write_table(pa.table({"text": [b"fine", b"\xff", b"too"]}), tmp_path / "a.parquet")
    _fails(tmp_path / "a.parquet", "a.parquet", "a row that is not UTF-8")
    skips = Skips()
    (source,) = _found(tmp_path / "a.parquet").sources
    assert list(source.documents("text", skips)) == ["fine", "too"] and skips.count == 1


def test_folders_of_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets comes with an extra")
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    wanted = [text for text in DOCUMENTS if text]
    assert _read(tmp_path / "one") == wanted and _read(tmp_path / "both") == 2 * wanted
    assert _names(tmp_path / "both") == ["test/data-00000-of-00001.arrow", "train/data-00000-of-00001.arrow"]


def test_folders_of_linked_files_and_folders(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(_lines(["linked"]))
    root = tmp_path / "root"
    (root / "own").mkdir(parents=True)
    (root / "own" / "a.txt").write_text("own", encoding="utf-8")
    (root / "train.jsonl").symlink_to(tmp_path / "blobs" / "0a1b")  # as the hub's cache keeps its files
    (root / "again.jsonl").symlink_to(tmp_path / "blobs" / "0a1b")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.txt").write_text("far", encoding="utf-8")
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "round").symlink_to(root)
    (root / "broken.txt").symlink_to(tmp_path / "nowhere")
    assert _names(root) == ["again.jsonl", "linked/b.txt", "own/a.txt"]
    assert _read(root) == ["linked", "far", "own"]
    told = " ".join(_found(root).left_out.lines())
    assert "2 linked twice (round/, train.jsonl)" in told and "1 broken links (broken.txt)" in told


def test_what_is_left_out_is_told(tmp_path):
    for name in (
        ".git/config",
        "README.md",
        "LICENSE",
        "a.txt",
        "b.jpeg",
        "noext",
        "package.json",
        "state.json",
        "void.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}" if name.endswith("json") else "" if "void" in name else "words", encoding="utf-8")
    (tmp_path / "rows.json").write_bytes(_lines(["row"]))
    found = _found(tmp_path, exclude=())
    assert [source.name for source in found.sources] == ["a.txt", "rows.json"]
    (line,) = found.left_out.lines()
    for part in (
        "1 hidden (.git/)",
        "3 about the data (LICENSE, README.md, state.json)",
        "1 no known text (.jpeg) (b.jpeg)",
        "1 no known text (no suffix) (noext)",
        "1 JSON without 'text' (package.json)",
        "1 empty (void.txt)",
    ):
        assert part in line
    # What is named is text.
    for name in ("README.md", "LICENSE", ".git/config"):
        assert _read(tmp_path / name) == ["words"]
    assert _names(f"{tmp_path}/README*") == ["README.md"]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (("*.md",), ["a.txt", "sub/deep/d.txt"]),
        (("sub",), ["a.txt", "b.md"]),
        (("sub/*",), ["a.txt", "b.md"]),
        (("**/c.md", "a.*"), ["b.md", "sub/deep/d.txt"]),
        (("deep/",), ["a.txt", "b.md", "sub/c.md"]),
        (("*.MD",), ["a.txt", "b.md", "sub/c.md", "sub/deep/d.txt"]),
    ],
)
def test_exclude(tmp_path, patterns, kept):
    for name in ("a.txt", "b.md", "sub/c.md", "sub/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert _names(tmp_path, exclude=patterns) == _names(f"{tmp_path}/**/*.*", exclude=patterns) == kept
    unused = "1 patterns to exclude that match nothing (*.MD)"
    assert (unused in "".join(_found(tmp_path, exclude=patterns).left_out.lines())) == ("*.MD" in patterns)


def test_nothing_is_left(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match=r"gives no text \(left out: 1 excluded \(a.txt\)\)"):
        _found(tmp_path, exclude=("*",))
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match=r"1 folders that the pattern matches \(sub/\)"):
        _found(f"{tmp_path}/s*")


BROKEN = {
    "latin.txt": b"caf\xe9",
    "binary.txt": b"a\0b",
    "utf16.txt": "words".encode("utf-16"),
    "rows.jsonl": b'{"text": "kept 1"}\n{"te\n{"text": 3}\n{"text": "kept 2"}\n',
    "half.jsonl.gz": gzip.compress(_lines(["x" * 99] * 99))[:40],
    "half.txt.xz": lzma.compress(b"words" * 999)[:-20],
    "no.parquet": b"PAR1",
    "nested.jsonl": b"[" * 99_999 + b"\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_skipped_and_counted(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    _fails(tmp_path / name, name)
    skips = Skips()
    (source,) = _found(tmp_path / name).sources
    assert list(source.documents("text", skips)) == (["kept 1", "kept 2"] if name == "rows.jsonl" else [])
    assert skips.count == (2 if name == "rows.jsonl" else 1) and name in str(skips.example)


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
    assert _names(tmp_path) == ["a/y.jsonl.gz", "a/z.md", "b.txt"]
    assert _read(tmp_path) == ["packed", "a/z.md", "b.txt"]
    assert _names(f"{tmp_path}/**/*.md") == ["a/z.md"]
    assert _names(f"{tmp_path}/*.bin") == ["noise.bin"]
    assert _names(tmp_path / "noise.bin") == ["noise.bin"]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home", encoding="utf-8")
    assert _read("~/a.txt") == ["home"]


def test_stdlib_is_readable_text_of_the_library_alone():
    sources = _found("stdlib").sources
    names = [source.name for source in sources]
    assert names == sorted(names) and {"os.py", "json/decoder.py"} <= set(names)
    assert not any(part in name for name in names for part in ("site-packages", "dist-packages"))
    for source in sources:
        assert len(list(source.documents("text", stop))) == 1


@pytest.mark.parametrize("spec", ["absent.txt", "absent/folder/", "*.txt", "two words", "~nobody-of-that-name/a.txt"])
def test_what_is_not_there(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    error = _fails(spec, "no")
    assert error.field == "path"


def test_empty_text(tmp_path):
    (tmp_path / "a.txt").touch()
    _fails(tmp_path / "a.txt", "a.txt", "1 empty")
    (tmp_path / "b.txt").touch()
    _fails(tmp_path, str(tmp_path), "2 empty (a.txt, b.txt)")
    (tmp_path / "sub").mkdir()
    _fails(tmp_path / "sub", "gives no text (nothing matches)")


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


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst", ".xz"])
@pytest.mark.parametrize("stem", ["a.jsonl", "a.txt"])
def test_truncated_archives(tmp_path, stem, packing):
    path = tmp_path / (stem + packing)
    blob = _packed(packing, _lines([os.urandom(50).hex() for _ in range(2000)]))
    path.write_bytes(blob[: len(blob) // 2])
    _fails(path, path.name)


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst", ".xz"])
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
        (b"[" * 99_999, "not a JSON object"),
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
    _fails("hf:org/name", "org/name is a local path")
    assert not hub.asked


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".parquet", ".arrow"])
def test_names_that_are_not_utf8(tmp_path, suffix):
    """Text may lie under whatever name the file system lets it have."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"\xfft\xe9xt" + suffix.encode())
    table = pa.table({"text": ["a b"]})
    with open(path, "wb") as stream:
        if suffix == ".parquet":
            pq.write_table(table, stream)
        elif suffix == ".arrow":
            with pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
        elif suffix == ".txt":
            stream.write(b"a b")
        else:
            stream.write(_packed(suffix.removeprefix(".jsonl"), _lines(["a b"])))
    assert _read(path) == _read(folder) == ["a b"]


def test_a_long_line_is_read_by_its_own_piece_alone(tmp_path, monkeypatch):
    """The pieces that begin within a line look for its end no farther than their own."""
    path, size, asked = tmp_path / "a.jsonl", 100, []
    path.write_bytes(b"a\n" + b"x" * 5000 + b"\nb\n")

    class Counting(io.FileIO):
        def readline(self, limit=-1):
            line = super().readline(limit)
            asked.append(len(line))
            return line

    monkeypatch.setattr("mom_jax.data.opening.open", lambda name, mode: Counting(name), raising=False)
    pieces = [read_lines(path, start, start + size) for start in range(0, 5004, size)]
    assert b"".join(pieces) == path.read_bytes()
    assert sum(asked) < 2 * 5004 + size * 2


@pytest.mark.parametrize(
    "made",
    [
        ["config.json", "metrics.jsonl", "eval.json", "report.md", "checkpoints/4/config/a.json"],
        ["config.json", "model-00001-of-00002.safetensors", "merges.txt", "eval.json"],
        ["index.json", "train-00000.offsets", "train-00000.json", "valid.txt"],
    ],
    ids=["a run", "a published model", "shards"],
)
def test_what_was_made_here_is_no_text(tmp_path, made):
    """A run's folder often lies within that of its text, as runs/mom-tiny does where --data.path is a dot."""
    names = ["a.txt", "b/config.json", "b/c.txt", *(f"runs/mine/{name}" for name in made)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "words"}', encoding="utf-8")
    assert _names(tmp_path) == _names(tmp_path / "**" / "*") == ["a.txt", "b/c.txt", "b/config.json"]
    (line,) = _found(tmp_path).left_out.lines()
    assert line == "left out: 1 of runs, models or shards (runs/mine/)"
    if "report.md" in made:
        assert "report.md" in _names(tmp_path / "runs" / "mine" / "*"), "what is named is read"
