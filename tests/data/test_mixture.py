"""Mixtures: how they are written, their shares of the windows, and where they go on."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from mom_jax.data.config import DataConfig
from mom_jax.data.loader import TrainLoader
from mom_jax.data.mixture import parse_mixture
from mom_jax.data.prepare import prepared
from mom_jax.errors import InputError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two texts that share no letter; code is a fifth as long as books."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "books").mkdir()
    for i in range(4):
        (folder / "books" / f"{i}.txt").write_text("abcdefgh\n" * 400, encoding="utf-8")
    (folder / "code.txt").write_text("01234567\n" * 320, encoding="utf-8")
    mixture = f"books=3:{folder}/books/*.txt,code=1:{folder}/code.txt"
    return DataConfig(mixture=mixture, sequence_length=32, batch_size=8, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def data(config):
    return prepared(config, workers=1, progress=False)


def kind(row):
    return "code" if (row < 64).any() and not (row > 96).any() else "books"


def test_windows_come_by_weight_and_are_of_one_text_each(config, data):
    loader = TrainLoader(data, config)
    rows = [row for batch in itertools.islice(loader, 50) for row in batch["input_ids"]]
    counts = collections.Counter(map(kind, rows))
    assert counts == {"books": 300, "code": 100}
    assert loader.epochs()["epochs_code"] > 1 > loader.epochs()["epochs_books"] > 0
    assert loader.epochs() == loader.epochs_after(50)


def test_it_goes_on_exactly_also_in_two_processes(config, data):
    whole = TrainLoader(data, config)
    batches = [next(whole)["input_ids"] for _ in range(12)]
    early = TrainLoader(data, config)
    for _ in range(5):
        next(early)
    again = TrainLoader(data, config)
    again.set_state(early.get_state())
    np.testing.assert_array_equal([next(again)["input_ids"] for _ in range(7)], batches[5:])
    halves = [TrainLoader(data, config, i, 2) for i in range(2)]
    for half in halves:
        half.set_state(early.get_state())
    first = [next(half)["input_ids"] for half in halves]
    np.testing.assert_array_equal(np.stack(first, 1).reshape(batches[5].shape), batches[5])


def test_other_weights_are_another_text(config, data):
    other = dataclasses.replace(config, mixture=config.mixture.replace("=3:", "=2:"))
    with pytest.raises(InputError, match="its text or tokenizer is not the one"):
        TrainLoader(prepared(other, progress=False), other).set_state(TrainLoader(data, config).get_state())
    scaled = dataclasses.replace(config, mixture=config.mixture.replace("=3:", "=0.75:").replace("=1:", "=0.25:"))
    assert prepared(scaled, progress=False).fingerprint == data.fingerprint, "weights are shares"


def test_held_out_text_is_that_of_all_parts(config, data):
    ids, _ = data.held_out.read(0, len(data.held_out))
    assert {kind(ids[i : i + 8]) for i in range(0, len(ids) - 8, 8)} == {"books", "code"}
    assert any(note.startswith("books (75.0%): text: ") for note in data.notes)


def test_it_is_kept_by_paths_that_mean_the_same_elsewhere(config, monkeypatch, tmp_path):
    monkeypatch.chdir(config.cache_dir + "/..")
    relative = dataclasses.replace(config, mixture="books=3:books/*.txt,code=1:code.txt")
    assert relative.anchored().parts == config.anchored().parts == config.parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("books", "mixture=books: expected NAME=WEIGHT:PATH"),
        ("a=1:x,b", "mixture=b|no such file"),
        ("books=much:x", "'much' is not a positive number"),
        ("books=:x", "'nothing' is not a positive number"),
        ("books=0:x", "'0' is not a positive number"),
        ("books=nan:x", "'nan' is not"),
        ("books=-1:x", "'-1' is not"),
        ("a=1:x,a=2:y", "names a twice"),
        ("a=1:", "expected NAME=WEIGHT:PATH"),
        ("a=1:gs://b/x", "mixture=gs://b/x: the package for gs:// addresses is missing"),
        ("a=1:no-such.txt", "mixture=no-such.txt: no such file or folder"),
        ("a=1:books,b=1:books/1.txt", "mixture=.*books/1.txt: is text of a and of b, and what one holds out the other"),
        ("a=1:books/[01].txt,b=1:books/[12].txt", "mixture=.*books/1.txt: is text of a and of b"),
        ("a=1:code.txt,b=2:code.txt", "mixture=.*code.txt: is text of a and of b"),
        ("a=1:code.txt,b=1:short.txt", "the training text of b fills only"),
    ],
)
def test_what_names_nothing_or_does_not_parse(text, message, config, monkeypatch):
    monkeypatch.chdir(config.cache_dir + "/..")
    with open("short.txt", "w", encoding="utf-8") as file:
        file.write("some words\nof text\n")
    with pytest.raises(InputError, match=message):
        other = dataclasses.replace(config, mixture=text)
        TrainLoader(prepared(other, progress=False), other)


def test_weights_are_shares_and_paths_may_hold_commas_and_colons():
    parts = parse_mixture("a=1:x,y.txt, b=3:hf:o/n:c")
    assert [(part.name, part.weight, part.path) for part in parts] == [("a", 0.25, "x,y.txt"), ("b", 0.75, "hf:o/n:c")]
