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
    discounts = _tuned_discounts(_Model.of(rest), _distinct(tuning))
    rest += tuning
    del tuning
    text = _distinct(np.add(*_count(data.held_out)))
    names = ("unigram", "bigram", "trigram")
    chances = _Model.of(rest).probabilities(text, discounts)
    return {name: _bits(text, chance) / data.held_out.text_bytes for name, chance in zip(names, chances, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Model:
    """Counts of orders 1 to 3, and per context how many symbols followed and how many different ones."""

    counts: tuple[np.ndarray, ...]  # int32 or int64 [257], [257, 257], [258, 257, 257]
    totals: tuple[np.ndarray, ...]  # counts summed over the predicted symbol
    kinds: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, table: np.ndarray) -> "_Model":
        pairs = table.sum(0, dtype=np.int64)
        counts = (pairs.sum(0), pairs, table)
        totals = tuple(c.sum(-1, dtype=np.int64) for c in counts)
        return cls(counts, totals, tuple(np.count_nonzero(c, axis=-1) for c in counts))

    def probabilities(self, text: _Trigrams, discounts: list[float]) -> list[np.ndarray]:
        """Of each of ``text``'s trigrams' last symbols under the orders 1, 2, ...: one order more than discounts."""
        chance = ((self.counts[0] + 0.5) / (self.totals[0] + 0.5 * SYMBOLS))[text.w]
        chances = [chance]
        for order, discount in enumerate(discounts, 1):
            context = (text.u, text.v)[2 - order :]
            total = self.totals[order][context]
            discounted = np.maximum(self.counts[order][(*context, text.w)] - discount, 0)
            backoff = discount * self.kinds[order][context]
            # A context never seen leaves all to the order below.
            chance = np.where(total > 0, (discounted + backoff * chance) / np.maximum(total, 1), chance)
            chances.append(chance)
        return chances


def _tuned_discounts(model: _Model, text: _Trigrams) -> list[float]:
    """The discounts of order 2 and 3 that make ``text`` cheapest, chosen one after the other."""
    chosen: list[float] = []
    for _ in range(2):
        costs = [_bits(text, model.probabilities(text, [*chosen, d])[-1]) for d in _DISCOUNTS]
        chosen.append(float(_DISCOUNTS[int(np.argmin(costs))]))
    return chosen


def _bits(text: _Trigrams, chances: np.ndarray) -> float:
    return float(-(text.count * np.log2(chances)).sum())


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
    """Cells, int32 [n], of the trigrams that end in each predicted symbol; whether it lies in a tuning block."""
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
