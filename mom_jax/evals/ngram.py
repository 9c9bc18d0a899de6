"""Unigram, bigram and trigram byte models: the yardstick beside a byte-level language model.

The comparison is even-handed. Both sides are fitted on the same training files and predict exactly the same held-out
symbols: every byte but the first of each document, and each document's end. Both are divided by the same number, all
bytes of the held-out text. No context crosses a document's border. The n-gram models see a full context everywhere,
whereas a language model begins afresh at each window.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from mom_jax.data.shards import PreparedData, TokenStream
from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.errors import InputError

END = 256  # symbols: the bytes 0-255 and a document's end
SYMBOLS = 257
START = 257  # stands before a document's first byte, as context only
CONTEXTS = 258

_CHUNK = 2**22  # tokens counted at a time
_BLOCK = 4096  # every 20th block of so many training tokens tunes the discounts
_DISCOUNTS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0])


@dataclasses.dataclass(frozen=True)
class _Trigrams:
    """Distinct trigrams (u, v, w), each int64 [n], and how often each occurs, int64 [n]."""

    u: np.ndarray
    v: np.ndarray
    w: np.ndarray
    count: np.ndarray


def ngram_bits_per_byte(data: PreparedData) -> dict[str, float]:
    """Held-out bits per byte of byte models of order 1 to 3.

    Interpolated absolute discounting (Ney, Essen and Kneser 1994): each order subtracts a constant D from every count
    and gives the mass to the order below; the unigram adds 1/2 to every count. D is chosen per order on a twentieth of
    the training tokens with counts from the rest; then all training tokens are counted. Held-out text decides nothing.

    Args:
        data: prepared with the byte tokenizer. About 0.6 GB of memory, whatever its size.

    Returns:
        ``{"unigram": ..., "bigram": ..., "trigram": ...}`` in bits per byte of held-out text.

    Raises:
        InputError: another tokenizer.
    """
    if data.tokenizer_fingerprint != ByteTokenizer.fingerprint:
        raise InputError("tokenizer", data.tokenizer, "byte n-gram models need data prepared with the tokenizer bytes")
    rest, tuning = _count(data.train)
    slice_ = _distinct(tuning)
    tuned: list[float] = []
    for order in (2, 3):
        costs = [_bits(rest, slice_, [*tuned, d])[order - 1] for d in _DISCOUNTS]
        tuned.append(float(_DISCOUNTS[int(np.argmin(costs))]))
    rest += tuning
    del tuning
    held_out = _distinct(sum(_count(data.held_out)))
    bits = _bits(rest, held_out, tuned)
    return {name: b / data.held_out.text_bytes for name, b in zip(("unigram", "bigram", "trigram"), bits, strict=True)}


def _count(stream: TokenStream) -> tuple[np.ndarray, np.ndarray]:
    """Trigram counts int32 [258, 257, 257] of the stream without its tuning blocks, and of these alone."""
    shape = (CONTEXTS, SYMBOLS, SYMBOLS)
    rest, tuning = np.zeros(np.prod(shape), np.int32), np.zeros(np.prod(shape), np.int32)
    for codes, is_tuning in _trigram_codes(stream):
        # Sorting a chunk's codes touches far less memory than a histogram over all 17 million cells.
        for table, chosen in ((rest, codes[~is_tuning]), (tuning, codes[is_tuning])):
            cells, counts = np.unique(chosen, return_counts=True)
            table[cells] += counts.astype(np.int32)
    return rest.reshape(shape), tuning.reshape(shape)


def _trigram_codes(stream: TokenStream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cell numbers, int32 [n], of the trigrams that end in each predicted symbol, and whether it lies in a tuning block."""
    for start in range(1, len(stream), _CHUNK):
        low = max(start - 2, 0)
        ids, is_first = stream.read(low, start + _CHUNK)
        symbols = np.where(ids < END, ids, END)
        skip = start - low
        target, previous = symbols[skip:], symbols[skip - 1 : -1]
        before = np.concatenate([symbols[:1], symbols])[skip - 1 : -2]  # what fills position -1 gives way to START
        before = np.where(is_first[skip - 1 : -1], START, before)
        codes = ((before * SYMBOLS) + previous) * SYMBOLS + target
        position = np.arange(start, start + len(target))
        predicted = ~is_first[skip:]
        yield codes[predicted], (position // _BLOCK % 20 == 0)[predicted]


def _distinct(table: np.ndarray) -> _Trigrams:
    u, v, w = np.nonzero(table)
    return _Trigrams(u, v, w, table[u, v, w].astype(np.int64))


def _bits(table: np.ndarray, text: _Trigrams, discounts: list[float]) -> list[float]:
    """Bits that models of order 1, 2, ... from the counts ``table`` spend on ``text``: one order more than discounts."""
    pairs = table.sum(0, dtype=np.int64)
    singles = pairs.sum(0)
    probability = ((singles + 0.5) / (singles.sum() + 0.5 * SYMBOLS))[text.w]
    bits = [_cost(text, probability)]
    for counts, context, discount in zip((pairs, table), ((text.v,), (text.u, text.v)), discounts, strict=False):
        total = counts.sum(-1, dtype=np.int64)[context]
        kinds = np.count_nonzero(counts, axis=-1)[context]
        seen = np.maximum(counts[(*context, text.w)] - discount, 0)
        safe = np.maximum(total, 1)  # a context never seen leaves all to the order below
        probability = np.where(total > 0, seen / safe + discount * kinds / safe * probability, probability)
        bits.append(_cost(text, probability))
    return bits


def _cost(text: _Trigrams, probability: np.ndarray) -> float:
    return float(-(text.count * np.log2(probability)).sum())
