"""Synthetic recall against its definitions, row by row."""

import numpy as np
import pytest

from mom_jax.data.recall import fused_mqar, interference, mqar, selective_copy
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE

VOCAB = 128


def rng(seed=0):
    """A generator."""
    return np.random.default_rng(seed)


MAKERS = {
    "mqar": lambda r: mqar(r, 6, 64, 8, VOCAB),
    "mqar without room": lambda r: mqar(r, 6, 32, 8, VOCAB),
    "fused": lambda r: fused_mqar(r, 6, 40, 8, VOCAB),
    "fused without room": lambda r: fused_mqar(r, 6, 16, 8, VOCAB),
    "copy": lambda r: selective_copy(r, 6, 40, 8, 16),
    "interference": lambda r: interference(r, 6, 32, 4, 12, VOCAB, 2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_seed_gives_a_batch(make):
    """The same seed the same batch, the next batch and another seed another; int32 and of one length."""
    first, again = rng(3), rng(3)
    one, two = make(first), make(again)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.tokens, make(first).tokens)
    assert not np.array_equal(one.tokens, make(rng(4)).tokens)
    assert one.tokens.dtype == one.labels.dtype == np.int32
    assert one.tokens.shape[:2] == one.labels.shape


@pytest.mark.parametrize(("length", "pairs"), [(64, 8), (32, 8), (16, 1)])
def test_mqar(length, pairs):
    """Every key is asked for once, after it was bound once; its label is its value; nothing else is asked."""
    for tokens, labels in zip(*mqar(rng(), 50, length, pairs, VOCAB), strict=True):
        keys, values = tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert keys.min() >= 1 and keys.max() < VOCAB // 2 <= values.min() and values.max() < VOCAB
        (asked,) = np.nonzero(labels != IGNORE)
        assert sorted(tokens[asked]) == sorted(keys) and asked.min() >= 2 * pairs
        assert [dict(zip(keys, values, strict=True))[key] for key in tokens[asked]] == list(labels[asked])
        rest = np.delete(tokens[2 * pairs :], asked - 2 * pairs)
        assert not rest.any(), "nothing but blanks between queries: no answer is ever shown"


@pytest.mark.parametrize(("length", "pairs"), [(40, 8), (16, 8)])
def test_fused_mqar(length, pairs):
    """The same with key and value in one token; a query brings no value."""
    for tokens, labels in zip(*fused_mqar(rng(), 50, length, pairs, VOCAB), strict=True):
        keys, values = tokens[:pairs].T
        assert len(set(keys)) == len(set(values)) == pairs
        (asked,) = np.nonzero(labels != IGNORE)
        assert asked.min() >= pairs and sorted(tokens[asked, 0]) == sorted(keys)
        assert [dict(zip(keys, values, strict=True))[key] for key in tokens[asked, 0]] == list(labels[asked])
        assert not tokens[pairs:, 1].any()
        assert np.count_nonzero(tokens[pairs:, 0]) == pairs


def test_the_gaps_follow_the_power_law():
    """The first key is asked for at the i-th place with probability proportional to i ** (power - 1)."""
    for power in (0.01, 1.0):
        tokens, _ = mqar(rng(), 4000, 24, 2, 64, power)
        place = np.argmax(tokens[:, 4:] == tokens[:, :1], 1) // 2
        share = np.bincount(place, minlength=10) / 4000
        expected = np.arange(1, 11) ** (power - 1)
        np.testing.assert_allclose(share, expected / expected.sum(), atol=0.03)


def test_keys_and_values_are_bound_at_random():
    """Neither a key's id nor its place tells its value."""
    tokens, _ = mqar(rng(), 4000, 16, 2, 16)
    table = np.zeros((8, 16))
    np.add.at(table, (tokens[:, 0], tokens[:, 1]), 1)
    np.testing.assert_allclose(table[1:, 8:] / 4000, 1 / 56, atol=0.01)


def test_selective_copy():
    """Items keep their order; the markers ask for them."""
    for tokens, labels in zip(*selective_copy(rng(), 50, 40, 8, 16), strict=True):
        items = tokens[:32][tokens[:32] != 0]
        assert len(items) == 8 and items.min() >= 2 and items.max() < 16
        assert list(tokens[32:]) == [1] * 8 and list(labels[32:]) == list(items)
        assert (labels[:32] == IGNORE).all()


@pytest.mark.parametrize("second", ["same", "other", "either"])
@pytest.mark.parametrize(("asked", "queries"), [("first", 4), ("all", 10)])
def test_interference(second, asked, queries):
    """Pairs of one kind, then distractors of the same or of another; what is asked comes behind them, then blanks."""
    kinds, apart = 4, []
    for tokens, labels in zip(*interference(rng(), 50, 24, 4, 6, VOCAB, kinds, second, asked), strict=True):
        keys, values, marks = tokens[:10].T
        of_kind = (keys - 1) // ((VOCAB // 2 - 1) // kinds)
        assert (marks == VOCAB - kinds + of_kind).all() and of_kind.max() < kinds
        assert len(set(keys)) == len(set(values)) == 10 and VOCAB // 2 <= values.min() <= values.max() < VOCAB - kinds
        assert len(set(of_kind[:4])) == len(set(of_kind[4:])) == 1
        apart.append(of_kind[0] != of_kind[-1])
        answers, asked_for = dict(zip(keys, values, strict=True)), tokens[10 : 10 + queries, 0]
        assert sorted(asked_for) == sorted(keys[:queries]) and not tokens[10:, 1].any()
        assert [answers[key] for key in asked_for] == list(labels[10 : 10 + queries])
        assert not tokens[10 + queries :].any() and (np.delete(labels, range(10, 10 + queries)) == IGNORE).all()
    assert np.mean(apart) == {"same": 0, "other": 1}.get(second, np.mean(apart)) and len(set(apart)) == (
        2 if second == "either" else 1
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mqar(rng(), 1, 30, 8, VOCAB), "length=30: must be at least 32 for 8 pairs"),
        (lambda: mqar(rng(), 1, 33, 8, VOCAB), "length=33: must be even"),
        (lambda: mqar(rng(), 1, 64, 8, 16), "vocab=16: must be at least 18 for 8 keys"),
        (lambda: fused_mqar(rng(), 1, 64, 0, 16), "pairs=0: must be at least 1"),
        (lambda: selective_copy(rng(), 1, 64, 8, 2), "vocab=2: must be at least 3"),
        (lambda: interference(rng(), 1, 8, 2, -1, 64), "distractors=-1: must be at least 0"),
        (lambda: interference(rng(), 1, 32, 2, 10, 64), "vocab=64: must be at least 98 for 4 kinds of 12 keys"),
        (lambda: interference(rng(), 1, 9, 2, 6, 128), "length=9: must be at least 10"),
        (lambda: interference(rng(), 1, 16, 2, 6, 64, kinds=1), "kinds=1: must be at least"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
