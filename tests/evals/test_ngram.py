import itertools
import math
from collections import Counter

import numpy as np
import pytest

import mom_jax.evals.ngram as ngram
from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare
from mom_jax.data.shards import open_prepared
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.errors import InputError

END = 256
TRAIN = ["the cat sat on the mat. " * 3, "a dog and a cat", "b", "the end"]
HELD_OUT = ["the dog sat on a cat", "z", "mat zq"]


@pytest.fixture
def make(tmp_path):
    """Prepares two lists of documents, one text file each."""

    def write(train, held_out, name="out"):
        for split, documents in (("train", train), ("held", held_out)):
            (tmp_path / f"{name}-{split}").mkdir()
            for number, text in enumerate(documents):
                (tmp_path / f"{name}-{split}" / f"{number:04d}.txt").write_text(text, encoding="utf-8")
        config = DataConfig(path=str(tmp_path / f"{name}-train"), held_out_path=str(tmp_path / f"{name}-held"))
        prepare(config, tmp_path / name)
        return open_prepared(tmp_path / name)

    return write


def _events(documents):
    """(symbol before last, last symbol, predicted symbol) for all but each document's first symbol."""
    for text in documents:
        symbols = [ngram.START, *text.encode(), END]
        yield from zip(symbols, symbols[1:], symbols[2:], strict=False)


def _plain_bits(train, held_out, discounts):
    """The same models, one event at a time."""
    counts = [Counter(event[2 - n :] for event in _events(train)) for n in range(3)]
    total = sum(counts[0].values())

    def probability(event, order):
        if order == 1:
            return (counts[0][event[2:]] + 0.5) / (total + 0.5 * 257)
        lower = probability(event, order - 1)
        followers = [counts[order - 1][(*event[3 - order : 2], w)] for w in range(257)]
        if not sum(followers):
            return lower
        discount = discounts[order - 2]
        kept = max(followers[event[2]] - discount, 0) + discount * sum(f > 0 for f in followers) * lower
        return kept / sum(followers)

    return [-sum(math.log2(probability(e, order)) for e in _events(held_out)) for order in (1, 2, 3)]


def test_counts_are_those_of_the_documents(make, monkeypatch):
    data = make(TRAIN, HELD_OUT)
    wanted = Counter(_events(TRAIN))
    for chunk in (3, 7, 10**6):  # chunk borders must not matter
        monkeypatch.setattr(ngram, "_CHUNK", chunk)
        table = np.add(*ngram._count(data.train))
        assert {tuple(map(int, cell)): int(table[tuple(cell)]) for cell in np.argwhere(table)} == wanted


def _tables(data):
    return ngram._Model.of(np.add(*ngram._count(data.train))), ngram._distinct(np.add(*ngram._count(data.held_out)))


def test_bits_are_those_of_the_plain_model(make):
    model, text = _tables(make(TRAIN, HELD_OUT))
    for discounts in ([0.5, 0.8], [1.0, 0.05]):
        bits = [ngram._bits(text, chance) for chance in model.probabilities(text, discounts)]
        np.testing.assert_allclose(bits, _plain_bits(TRAIN, HELD_OUT, discounts), rtol=1e-12)


def test_probabilities_sum_to_one(make):
    model, _ = _tables(make(TRAIN, HELD_OUT))
    every = np.arange(257)
    for u, v in ((ord("t"), ord("h")), (ngram.START, ord("a")), (ord("q"), ord("q"))):
        text = ngram._Trigrams(np.full(257, u), np.full(257, v), every, np.ones(257, int))
        for chance in model.probabilities(text, [0.7, 0.4]):
            assert math.isclose(chance.sum(), 1, rel_tol=1e-9) and chance.min() > 0


def test_tuning_blocks_are_a_twentieth_and_nothing_is_lost(make, monkeypatch):
    monkeypatch.setattr(ngram, "_BLOCK", 8)
    data = make(["abcdefg" * 3000], HELD_OUT)
    rest, tuning = (int(table.sum()) for table in ngram._count(data.train))
    assert rest + tuning == len(data.train) - data.train.documents
    assert abs(tuning / (rest + tuning) - 0.05) < 0.002


def test_bits_per_byte_end_to_end(make, monkeypatch):
    monkeypatch.setattr(ngram, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(["the ", "cat ", "dog ", "sat "], size=200)) for _ in range(40)]
    train, held_out = documents[:32], documents[32:]
    data = make(train, held_out)
    got = ngram.ngram_bits_per_byte(data)
    assert list(got) == ["unigram", "bigram", "trigram"]
    size = sum(len(text.encode()) for text in held_out)
    model, text = _tables(data)
    grid = ngram._DISCOUNTS.tolist()
    options = [
        [ngram._bits(text, c) / size for c in model.probabilities(text, list(d))] for d in itertools.product(grid, grid)
    ]
    assert math.isclose(got["unigram"], options[0][0])
    assert any(math.isclose(got["bigram"], o[1]) and math.isclose(got["trigram"], o[2]) for o in options)
    assert got["unigram"] > got["bigram"] > got["trigram"] > 0.5, (
        "two bits per word of four letters: 0.5 cannot be beaten"
    )
    assert got["trigram"] < 1.05 * min(o[2] for o in options), (
        "the discounts fitted on training text must be near the best"
    )


def test_held_out_text_decides_nothing(make, monkeypatch):
    monkeypatch.setattr(ngram, "_BLOCK", 16)
    chosen = []
    tune = ngram._tuned_discounts
    monkeypatch.setattr(ngram, "_tuned_discounts", lambda model, text: chosen.append(tune(model, text)) or chosen[-1])
    for name, held_out in (("a", HELD_OUT), ("b", ["zzzz qqqq"])):
        ngram.ngram_bits_per_byte(make(TRAIN * 5, held_out, name))
    assert chosen[0] == chosen[1]


def test_another_tokenizer_is_refused(make, monkeypatch):
    data = make(TRAIN, HELD_OUT)
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "other")
    with pytest.raises(InputError, match="tokenizer bytes"):
        ngram.ngram_bits_per_byte(data)
