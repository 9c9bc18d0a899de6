"""The search for kernel parameters, on times that are known."""

from typing import NamedTuple

from benchmarks.tune import neighbours, search


class Blocks(NamedTuple):
    """An entry of a table."""

    rows: int
    warps: int


def test_neighbours():
    """One number is doubled or halved, and none falls below 1."""
    assert set(neighbours(Blocks(64, 1))) == {Blocks(128, 1), Blocks(32, 1), Blocks(64, 2)}


def test_search_finds_the_fastest():
    """It changes one number after the other, passes over what cannot run, and tries nothing twice."""
    tried = []

    def seconds(entries):
        (first, other), second = entries
        tried.append(entries)
        if first.rows > 128:
            return float("inf")
        return abs(first.rows - 128) + abs(first.warps - 8) + abs(other - 4) + abs(second - 2) + 1.0

    found = search([(Blocks(16, 4), 16), 2], seconds)
    assert found == ([(Blocks(128, 8), 4), 2], 1.0)
    assert len(tried) == len({str(x) for x in tried})
