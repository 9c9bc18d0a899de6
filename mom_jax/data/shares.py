"""A share of weighted items, chosen by a range of their hashes: the same whatever their order."""

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

_ALL = 2**64
# The first range of hashes that comes as near as this to the wanted share is taken, so that more items move few.
_NEAR_ENOUGH = 0.1


class TooFewItems(Exception):
    """Fewer than two different items, so that one side of a split must stay empty."""


@dataclasses.dataclass(frozen=True)
class HashRange:
    """Hashes from ``start`` up to ``stop``."""

    start: int
    stop: int

    def __contains__(self, value: int) -> bool:
        return self.start <= value < self.stop


def stable_hash(text: str) -> int:
    """64-bit hash of ``text``, the same on every machine and in every Python."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def fixed_range(share: float) -> HashRange:
    """The range that holds about ``share`` of very many items of whatever weight."""
    return HashRange(0, min(max(int(share * _ALL), 1), _ALL - 1))


def choose_range(items: Iterable[tuple[int, int]], share: float) -> HashRange:
    """The range of hashes whose items weigh about ``share`` of all, with at least one item on either side.

    Args:
        items: (hash, weight) of each; weights are at least 1. Equal hashes are one item.
        share: between 0 and 1.

    Raises:
        TooFewItems: fewer than two different hashes.
    """
    pairs = np.sort(np.fromiter(items, [("hash", np.uint64), ("weight", np.int64)]), order="hash")
    hashes, first = np.unique(pairs["hash"], return_index=True)
    if len(hashes) < 2:
        raise TooFewItems("a split needs two different items")
    sums = np.concatenate([[0], np.cumsum(np.add.reduceat(pairs["weight"], first))])
    target = share * sums[-1]
    starts = np.arange(len(hashes))
    above = np.searchsorted(sums, sums[:-1] + target)  # the first end whose range weighs at least the target
    ends = np.stack([above - 1, above])
    ends = np.clip(ends, starts + 1, np.minimum(len(hashes), starts + len(hashes) - 1))
    errors = np.abs(sums[ends] - sums[starts] - target)
    near = np.flatnonzero(errors.min(axis=0) <= _NEAR_ENOUGH * target)
    start = int(near[0]) if len(near) else int(errors.min(axis=0).argmin())
    end = int(ends[errors[:, start].argmin(), start])
    stop = int(hashes[end]) if end < len(hashes) else int(hashes[-1]) + 1
    return HashRange(0 if start == 0 else int(hashes[start]), stop)
