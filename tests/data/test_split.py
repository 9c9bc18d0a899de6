"""Which text is held out."""

import gzip
import json
import random
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shards import documents_of

import mom_jax.data.split as split_module
from mom_jax.data.config import DataConfig
from mom_jax.data.folders import matches
from mom_jax.data.passages import Passage
from mom_jax.data.plan import plan
from mom_jax.data.prepare import prepare
from mom_jax.data.shards import open_prepared
from mom_jax.data.shares import HashRange, TooFewItems, choose_range, fixed_range, stable_hash
from mom_jax.data.split import named_split, split
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.errors import InputError

ITEMS = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**40)), min_size=2, max_size=60, unique_by=lambda x: x[0]
)
SHARES = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train.jsonl", "train"),
        ("valid.jsonl", "validation"),
        ("validation.txt", "validation"),
        ("val.parquet", "validation"),
        ("dev.json.gz", "validation"),
        ("test.txt", "test"),
        ("eval.jsonl", "test"),
        ("evaluation.txt", "test"),
        ("testing.txt", "test"),
        ("training.txt", "train"),
        ("Valid.JSONL", "validation"),
        ("data-train.jsonl", "train"),
        ("data_val_1.txt", "validation"),
        ("wiki.valid.tokens", "validation"),
        ("train-00000-of-00002.parquet", "train"),
        ("c4-validation.00000-of-00008.json.gz", "validation"),
        ("data/test-00000-of-00001-abc.parquet", "test"),
        ("test1.txt", "test"),
        ("my dev 2.txt", "validation"),
        ("test/a.txt", "test"),
        ("en/validation/a.txt", "validation"),
        ("train_sft/test.txt", "train"),
        ("dev/train.jsonl", "validation"),
        ("train/test/x.txt", "test"),
        ("train-test.txt", "test"),
        ("train", "train"),
        ("split=test/part-0.parquet", "test"),
        ("valid(1).txt", "validation"),
        ("train@2.txt", "train"),
        ("news.en.heldout-00000-of-00050", "validation"),
        ("held_out.txt", "validation"),
        ("Hold-Out/a.txt", "validation"),
        ("devset.txt", "validation"),
        ("test-set.jsonl", "test"),
        ("trainSet.txt", "train"),
        ("éval.txt", None),
        ("testify.txt", None),
        ("settest.txt", None),
        ("trainer.txt", None),
        ("latest.txt", None),
        ("devices/a.txt", None),
        ("value.txt", None),
        ("contest/a.txt", None),
        ("a.txt", None),
    ],
)
def test_what_names_say(name, said):
    assert named_split(name) == said


def test_names_are_read_as_the_library_datasets_reads_them(tmp_path):
    data_files = pytest.importorskip("datasets.data_files", reason="the package datasets comes with an extra")
    for words in data_files.SPLIT_KEYWORDS.values():
        for word in words:
            for form in (
                "{}.txt",
                "x-{}.txt",
                "{}-00000-of-00002.txt",
                "x_{}_y.txt",
                "{}1.txt",
                "pre{}.txt",
                "{}ing.x.txt",
            ):
                folder = tmp_path / form.format(word)
                folder.mkdir(exist_ok=True)
                (folder / form.format(word)).touch()
                theirs = data_files.get_data_patterns(str(folder))
                (theirs,) = theirs if len(theirs) == 1 else ("several",)
                # Without a word everything is train for them.
                assert str(theirs) == (named_split(form.format(word)) or "train"), form.format(word)


def _sides(path, **options):
    sides = split(DataConfig(path=str(path), **options))
    return sides.rule, [s.name for s in sides.train], [s.name for s in sides.held_out]


def _make(root, *names, size=10):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"text": f"{name} " + "x" * size}) + "\n"
        path.write_text(line if ".json" in name else name + "x" * size, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        (["train.jsonl", "valid.jsonl"], ["train.jsonl"], ["valid.jsonl"]),
        (["train.jsonl", "valid.jsonl", "README.md", "LICENSE.txt", ".x.txt"], ["train.jsonl"], ["valid.jsonl"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], ["dev.jsonl"]),
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (["a.txt", "b.txt", "test/c.txt"], ["a.txt", "b.txt"], ["test/c.txt"]),
        (["train/a.txt", "val/b.txt", "c.txt"], ["train/a.txt"], ["val/b.txt"]),
        (
            [
                "data/train-00000-of-00002.jsonl",
                "data/train-00001-of-00002.jsonl",
                "data/validation-00000-of-00001.jsonl",
            ],
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
            ["data/validation-00000-of-00001.jsonl"],
        ),
    ],
)
@pytest.mark.parametrize("as_glob", [False, True])
def test_names_decide(tmp_path, names, train, held_out, as_glob):
    _make(tmp_path, *names)
    for fraction in (0.01, 0.9):
        wanted = ("names", train, held_out)
        assert _sides(f"{tmp_path}/**/*" if as_glob else tmp_path, held_out_fraction=fraction) == wanted


def test_what_names_leave_out_is_told(tmp_path):
    _make(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "extra.jsonl")
    (note,) = split(DataConfig(path=str(tmp_path))).notes
    assert "1 test text (test.jsonl)" in note and "1 beside files whose names say what they are (extra.jsonl)" in note


def test_names_that_say_train_alone_are_all_text(tmp_path):
    _make(tmp_path, *(f"train-{i}.txt" for i in range(9)), "more.txt")
    rule, train, held_out = _sides(tmp_path, held_out_fraction=0.2)
    assert rule == "files" and len(train) == 8 and len(held_out) == 2


@pytest.mark.parametrize("names", [["test.jsonl"], ["dev/a.txt", "dev/b.txt"], ["eval.txt", "valid.txt"]])
def test_held_out_text_alone_is_refused(tmp_path, names):
    with pytest.raises(InputError, match=r"^path=.*only held-out text.*give the folder of the training text"):
        split(DataConfig(path=str(_make(tmp_path, *names))))


def test_a_named_file_is_text_whatever_its_name(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert _sides(tmp_path / "test.jsonl") == ("documents", ["test.jsonl"], ["test.jsonl"])


def test_held_out_path_comes_before_names(tmp_path):
    _make(tmp_path, "a/train.jsonl", "a/valid.jsonl", "a/test.jsonl", "b/train.jsonl", "b/dev.jsonl", "c/x.jsonl")
    wanted = [(tmp_path / "c", "x.jsonl"), (tmp_path / "b", "dev.jsonl"), (tmp_path / "a", "valid.jsonl")]
    for other, name in [*wanted, (tmp_path / "a" / "test.jsonl", "test.jsonl")]:
        assert _sides(tmp_path / "a", held_out_path=str(other)) == ("held_out_path", ["train.jsonl"], [name])
    with pytest.raises(InputError, match=r"^held_out_path=.*overlaps path"):
        _sides(tmp_path / "a", held_out_path=str(tmp_path / "a" / "train.jsonl"))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a" / "train.jsonl")
    with pytest.raises(InputError, match="overlaps path"):
        _sides(tmp_path / "a", held_out_path=str(tmp_path / "link.jsonl"))


@given(ITEMS, SHARES, st.randoms())
def test_neither_side_is_empty_and_order_is_nothing(items, share, random):
    chosen = choose_range(items, share)
    held_out = {value for value, _ in items if value in chosen}
    assert 0 < len(held_out) < len(items)
    random.shuffle(items)
    assert choose_range(items, share) == chosen


@given(ITEMS, SHARES)
def test_no_other_range_is_much_nearer(items, share):
    items = sorted(items)
    total, chosen = sum(size for _, size in items), choose_range(items, share)

    def miss(weight):
        return abs(weight - share * total)

    mine = miss(sum(size for value, size in items if value in chosen))
    best = min(
        miss(sum(size for _, size in items[start:end]))
        for start in range(len(items))
        for end in range(start + 1, len(items) + 1)
        if end - start < len(items)
    )
    assert mine <= max(best, 0.1 * share * total) * (1 + 1e-9)


@pytest.mark.parametrize("items", [[], [(5, 1)], [(5, 1), (5, 2)]])
def test_one_item_cannot_be_split(items):
    with pytest.raises(TooFewItems):
        choose_range(items, 0.5)


def test_the_ends_of_the_hashes():
    assert choose_range([(0, 1), (2**64 - 1, 9)], 0.9) == HashRange(2**64 - 1, 2**64)
    assert choose_range([(0, 9), (2**64 - 1, 1)], 0.9) == HashRange(0, 2**64 - 1)
    assert all(0 < fixed_range(share).stop < 2**64 for share in (1e-30, 0.5, 1 - 2**-53))


def test_the_hash_never_changes():
    # A new value here would move files between the splits of everyone's data.
    assert stable_hash("os.py") == 0xF19DB6A54FEDE009


def test_the_share_is_of_text_by_file_where_files_are_many(tmp_path):
    rng = random.Random(0)
    for number in range(200):
        _make(tmp_path, f"{number}.txt", size=rng.randrange(1, 20_000))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    rule, train, held_out = _sides(tmp_path)
    assert rule == "files" and not set(train) & set(held_out) and len(train) + len(held_out) == 200
    assert 0.045 < sum(sizes[name] for name in held_out) / sum(sizes.values()) < 0.055


def test_a_large_file_among_small_ones_is_trained_on(tmp_path):
    _make(tmp_path, "a.txt", "b.txt", "c.txt", size=100)
    _make(tmp_path, "large.txt", size=100_000)
    assert _sides(tmp_path)[1].count("large.txt") == 1


@pytest.mark.parametrize("files", [1, 4])
def test_the_share_is_of_text_by_document_where_files_are_few(tmp_path, files):
    rng = random.Random(0)
    for number in range(files):
        texts = [f"{number}-{i} " + "y" * rng.randrange(1, 500) for i in range(500)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{number}.parquet")
    config = DataConfig(path=str(tmp_path), held_out_fraction=0.05)
    planned = plan(config)
    assert planned.split.rule == "documents"
    amounts = {"train": 0, "held_out": 0}
    for unit in planned.units:
        for name, text in unit.documents("text", None):
            amounts[name.rpartition("-")[0]] += len(text)
    assert 0.045 < amounts["held_out"] / sum(amounts.values()) < 0.055
    # Nothing of it depends on how the documents lie in files.
    moved = tmp_path / "other"
    moved.mkdir()
    everything = [text for n in range(files) for text in pq.read_table(tmp_path / f"{n}.parquet")["text"].to_pylist()]
    pq.write_table(pa.table({"text": everything[::-1]}), moved / "x.parquet")
    assert plan(DataConfig(path=str(moved))).units[0].held_out == planned.units[0].held_out


def _texts(path, tmp_path, **options):
    prepare(DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), **options), tmp_path / "out")
    data = open_prepared(tmp_path / "out")
    decode = ByteTokenizer().decode
    return data.rule, *([decode(ids[:-1]) for ids in documents_of(side)] for side in (data.train, data.held_out))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_text_files_that_are_few_are_cut_before_their_ends(tmp_path, files, packing):
    folder = tmp_path / "text"
    folder.mkdir()
    wanted = []
    for number in range(files):
        wanted.append("".join(f"line {number} {i} é\n" for i in range(1000 + number)))
        blob = wanted[-1].encode()
        (folder / f"{number}.txt{packing}").write_bytes(gzip.compress(blob) if packing else blob)
    rule, train, held_out = _texts(folder if files > 1 else folder / f"0.txt{packing}", tmp_path)
    assert rule == "ends" and [a + b for a, b in zip(train, held_out, strict=True)] == wanted
    assert all(text.endswith("\n") for text in train)
    assert 0.045 < sum(map(len, held_out)) / sum(map(len, wanted)) < 0.055


def test_text_of_one_line_is_cut_between_words(tmp_path):
    (tmp_path / "text8").write_text("word " * 1000, encoding="utf-8")
    rule, (train,), (held_out,) = _texts(tmp_path / "text8", tmp_path)
    assert rule == "ends" and train + held_out == "word " * 1000 and train.endswith(" ") and len(held_out) == 250


def test_text_without_lines_and_words_is_cut_between_letters(tmp_path):
    (tmp_path / "a.txt").write_text("漢字" * 100 + "\n", encoding="utf-8")
    rule, (train,), (held_out,) = _texts(tmp_path / "a.txt", tmp_path)
    assert rule == "ends" and train + held_out == "漢字" * 100 + "\n" and 9 < len(held_out) < 13


@pytest.mark.parametrize(("text", "end"), [("hi there\n", "e\n"), ("ab", "b"), ("a\nb", "b"), ("字字\n\n", "字\n\n")])
def test_tiny_texts_have_two_sides(text, end):
    assert Passage(0.05, held_out=True).of(text.encode()).decode() == end


def test_a_broken_file_of_two_sides_is_counted_once(tmp_path):
    folder = _make(tmp_path / "text", "a.txt", "b.txt")
    (folder / "c.txt").write_bytes(b"caf\xe9")
    config = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"), on_error="skip")
    assert "skipped as broken: 1 (the first: path=c.txt:1: is not UTF-8" in prepare(config, tmp_path / "out").notes[1]


def test_one_letter_cannot_be_divided(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match=r"^path=.*has no held-out text"):
        _texts(tmp_path / "a.txt", tmp_path)


@given(st.text(st.characters(codec="utf-8"), max_size=40).map(str.encode), st.floats(0.01, 0.99))
def test_both_sides_of_a_text_are_the_text(blob, share):
    train, held_out = (Passage(share, side).of(blob) for side in (False, True))
    assert train.decode() + held_out.decode() == blob.decode()
    assert train + held_out == blob and (train.strip() or not blob.strip())
    assert not held_out or held_out.strip()


def test_large_text_is_not_read_to_be_split(tmp_path, monkeypatch):
    _make(tmp_path, "a.jsonl", "b.jsonl")
    monkeypatch.setattr(split_module, "_MEASURED_UP_TO", 10)
    monkeypatch.setattr("mom_jax.data.sources.read_documents", None)
    assert plan(DataConfig(path=str(tmp_path))).units[0].held_out == fixed_range(0.05)


def test_accents_apart_from_their_letters_are_nothing(tmp_path):
    """As some file systems keep names."""
    names = [f"\u00e9t\u00e9 {i}.txt" for i in range(30)]
    apart = [unicodedata.normalize("NFD", name) for name in names]
    sides = [_sides(_make(tmp_path / form, *names)) for form, names in (("NFC", names), ("NFD", apart))]
    assert sides[0] == sides[1] and apart != names
    for pattern in ("\u00e9*", "e\u0301*"):
        assert matches(names[0], pattern) and matches(apart[0], pattern)


def test_the_place_of_the_text_is_nothing(tmp_path):
    names = [f"{i}.txt" for i in range(30)]
    sides = [_sides(_make(tmp_path / place, *names)) for place in ("one", "two/deep")]
    assert sides[0] == sides[1]
