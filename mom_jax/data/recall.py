"""Synthetic recall: sequences that bind keys to values and ask for them later, made on the fly with NumPy.

Every maker takes a generator and sizes and returns a `RecallBatch`: the same seed gives the same batch. Token 0 is
blank; labels stand at the position that has to answer, and all others are -100.

In *fused* sequences one token carries a key and its value. Such a position has two ids, [key, value], either of
which may be blank; a model reads it as the sum of their two embeddings. A query is a key with a blank value.
"""

from typing import Literal, NamedTuple

import numpy as np

from mom_jax.errors import InputError
from mom_jax.labels import IGNORE

BLANK = 0


class RecallBatch(NamedTuple):
    """Rows to learn or to score."""

    tokens: np.ndarray  # int32 [B, T], or [B, T, 2] where tokens are fused
    labels: np.ndarray  # int32 [B, T]


def mqar(rng: np.random.Generator, batch: int, length: int, pairs: int, vocab: int, power: float = 0.01) -> RecallBatch:
    """Multi-query associative recall as Zoology defines it (Arora et al., arXiv 2312.04927, section 3 and appendix E).

    A row begins with ``pairs`` keys, each followed by its value; then every key comes once more, blanks between.
    There the value is asked for. Keys are from the lower half of the vocabulary, values from the upper half; no key and
    no value occurs twice in a row. A query stands at one of the ``(length - 2 * pairs) / 2`` even places behind the
    pairs, drawn without replacement with probability proportional to ``i ** (power - 1)`` for the i-th: gaps follow a
    power law as in text, and 1 makes all places equally likely.

    Args:
        rng: source of chance.
        batch, length: rows, and tokens of a row.
        pairs: keys with values in a row.
        vocab: token ids.
        power: exponent of the power law.

    Raises:
        InputError: the pairs and their queries do not fit into the row or the vocabulary.
    """
    _check_room(length, 4 * pairs, pairs)
    if length % 2:
        raise InputError("length", length, "must be even")
    keys, values = _keys_and_values(rng, batch, pairs, vocab)
    tokens, labels = _empty(batch, length)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    places = 2 * pairs + 2 * _gaps(rng, batch, (length - 2 * pairs) // 2, pairs, power)
    np.put_along_axis(tokens, places, keys, 1)
    np.put_along_axis(labels, places, values, 1)
    return RecallBatch(tokens, labels)


def fused_mqar(
    rng: np.random.Generator, batch: int, length: int, pairs: int, vocab: int, power: float = 0.01
) -> RecallBatch:
    """`mqar` with a pair in each of the first ``pairs`` tokens, and queries at any place behind them.

    Nothing has to be carried from a key to the token after it: what is measured is how much a memory holds.

    Raises:
        InputError: as `mqar`.
    """
    _check_room(length, 2 * pairs, pairs)
    keys, values = _keys_and_values(rng, batch, pairs, vocab)
    tokens, labels = _empty(batch, length, fused=True)
    tokens[:, :pairs] = np.stack([keys, values], -1)
    places = pairs + _gaps(rng, batch, length - pairs, pairs, power)
    np.put_along_axis(tokens[..., 0], places, keys, 1)
    np.put_along_axis(labels, places, values, 1)
    return RecallBatch(tokens, labels)


def selective_copy(rng: np.random.Generator, batch: int, length: int, items: int, vocab: int) -> RecallBatch:
    """Items among blanks, to be said again in order (Gu and Dao, arXiv 2312.00752, section 3.1).

    ``items`` tokens from [2, vocab), of which some may be equal, stand at random places of the first
    ``length - items``; the last ``items`` tokens are the marker 1, and the i-th asks for the i-th item.

    Raises:
        InputError: the items and their markers do not fit, or there is nothing to choose items from.
    """
    _check_room(length, 2 * items, items)
    if vocab < 3:
        raise InputError("vocab", vocab, "must be at least 3: a blank, a marker and an item")
    tokens, labels = _empty(batch, length)
    places = np.sort(_distinct(rng, batch, length - items, items), 1)
    values = rng.integers(2, vocab, (batch, items), dtype=np.int32)
    np.put_along_axis(tokens, places, values, 1)
    tokens[:, length - items :], labels[:, length - items :] = 1, values
    return RecallBatch(tokens, labels)


Second = Literal["same", "other", "either"]


def interference(
    rng: np.random.Generator,
    batch: int,
    length: int,
    pairs: int,
    distractors: int,
    vocab: int,
    kinds: int = 4,
    second: Second = "either",
    asked: Literal["first", "all"] = "first",
) -> RecallBatch:
    """What later writes do to earlier ones of their own kind and of another.

    Fused tokens as in `fused_mqar`, with a third id that says of which kind the key is: ``pairs`` keys of one kind with
    their values, ``distractors`` more, then keys to be recalled in random order, then blanks. The last ``kinds`` ids of
    the vocabulary mark the kinds; keys of a kind are an equal part of the lower half.

    Args:
        rng: source of chance.
        batch, length: rows, and tokens of a row.
        pairs, distractors: keys with values, written in this order; all differ.
        vocab: token ids, those of the kinds included.
        kinds: of keys.
        second: the kind of all distractors of a row: that of its pairs, another, or either at evens.
        asked: the keys of the pairs, or those of the distractors too.

    Returns:
        tokens [batch, length, 3], and labels [batch, length] with as many answers in each row.

    Raises:
        InputError: the row is too short, or the vocabulary has too few keys of a kind.
    """
    written = pairs + distractors
    queries = pairs if asked == "first" else written
    if distractors < 0:
        raise InputError("distractors", distractors, "must be at least 0")
    _check_room(length, written + queries, pairs)
    half, of_kind = vocab // 2, (vocab // 2 - 1) // max(kinds, 1)
    if kinds < 2 or written > of_kind or written > half - kinds:
        remedy = f"must be at least {2 * (max(kinds, 2) * written + 1)} for {max(kinds, 2)} kinds of {written} keys"
        raise InputError("vocab" if kinds >= 2 else "kinds", vocab if kinds >= 2 else kinds, remedy)
    first = rng.integers(0, kinds, batch)
    moved = {"same": 0.0, "other": 1.0, "either": 0.5}[second]
    later = (first + rng.integers(1, kinds, batch) * (rng.random(batch) < moved)) % kinds
    kind = np.where(np.arange(written) < pairs, first[:, None], later[:, None])
    keys = 1 + kind * of_kind + _distinct(rng, batch, of_kind, written)
    values = half + _distinct(rng, batch, half - kinds, written)
    marks = vocab - kinds + kind
    tokens = np.full((batch, length, 3), BLANK, np.int32)
    labels = np.full((batch, length), IGNORE, np.int32)
    tokens[:, :written] = np.stack([keys, values, marks], -1)
    order = _distinct(rng, batch, queries, queries)
    span = slice(written, written + queries)
    tokens[:, span, 0], tokens[:, span, 2] = (np.take_along_axis(x, order, 1) for x in (keys, marks))
    labels[:, span] = np.take_along_axis(values, order, 1)
    return RecallBatch(tokens, labels)


def _check_room(length: int, needed: int, pairs: int) -> None:
    if pairs < 1:
        raise InputError("pairs", pairs, "must be at least 1")
    if length < needed:
        raise InputError("length", length, f"must be at least {needed} for {pairs} pairs and their queries")


def _empty(batch: int, length: int, fused: bool = False) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((batch, length, 2) if fused else (batch, length), BLANK, np.int32)
    return tokens, np.full((batch, length), IGNORE, np.int32)


def _keys_and_values(rng: np.random.Generator, batch: int, pairs: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys from [1, vocab / 2) and distinct values from [vocab / 2, vocab), int32 [B, pairs] each."""
    half = vocab // 2
    if pairs > half - 1:
        raise InputError("vocab", vocab, f"must be at least {2 * (pairs + 1)} for {pairs} keys that differ")
    keys = 1 + _distinct(rng, batch, half - 1, pairs)
    values = half + _distinct(rng, batch, vocab - half, pairs)
    return keys.astype(np.int32), values.astype(np.int32)


def _distinct(rng: np.random.Generator, batch: int, choices: int, count: int) -> np.ndarray:
    """``count`` different numbers below ``choices`` in random order, for each row."""
    return _first(rng.random((batch, choices)), count)


def _gaps(rng: np.random.Generator, batch: int, space: int, count: int, power: float) -> np.ndarray:
    """``count`` different places below ``space`` for each row, drawn one after the other by the power law.

    The first to ring of clocks that ring at rate p is i with probability p_i, and so on among the others.
    """
    return _first(rng.exponential(size=(batch, space)) / np.arange(1, space + 1) ** (power - 1), count)


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of each row's ``count`` smallest scores, in ascending order of score."""
    few = np.argpartition(scores, count - 1, axis=1)[:, :count]
    return np.take_along_axis(few, np.argsort(np.take_along_axis(scores, few, 1), axis=1), 1)
