"""Which files or documents are held out: decided by a hash of their name or text, never by position."""

import hashlib
from collections.abc import Iterable

_RANGE = 2**64


class TooFewItems(Exception):
    """Fewer than two different items, so that one side of a split must stay empty."""


def stable_hash(text: str) -> int:
    """64-bit hash of ``text``, the same on every machine and in every Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def held_out_below(hashes: Iterable[int], fraction: float) -> int:
    """The bound below which a hash means "held out".

    It is ``fraction`` of the hash range, so that what is added later moves nothing that is already there.
    Only where that would leave one side empty, the smallest hash alone is held out, or the largest alone trained on.

    Raises:
        TooFewItems: fewer than two different hashes.
    """
    smallest, largest = _RANGE, -1
    for value in hashes:
        smallest, largest = min(smallest, value), max(largest, value)
    if smallest >= largest:
        raise TooFewItems("a split needs two different items")
    return min(max(int(fraction * _RANGE), smallest + 1), largest)
