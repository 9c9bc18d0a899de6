"""Prepared shards are what was written: compared with their sums when a machine opens them first."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mom_jax.data.shards import PreparedData, Shard
from mom_jax.data.sums import Sums
from mom_jax.data.workers import progress_bar
from mom_jax.errors import InputError

REMEDY = "run the command that prepared the data again, which writes this shard anew, or copy the folder again"


def verify(data: PreparedData, cache_dir: str) -> None:
    """Reads what this machine has not verified yet.

    Args:
        data: the opened folder.
        cache_dir: where it is remembered; the shards themselves may be read-only.

    Raises:
        InputError: names the first file that is corrupt, or holds what no tokenizer writes.
    """
    sums = Sums(cache_dir, data.folder)
    with sums.opened():
        fresh = [shard for shard in data.shards if any(sums.recall((str(p), None)) is None for p in shard.sums())]
        corrupt = corrupt_files(
            {path: d for shard in data.shards for path, d in shard.sums().items()}, sums, progress=True
        )
        if corrupt:
            raise InputError("path", corrupt[0], f"is corrupt (its SHA-256 differs); {REMEDY}")
        for shard in fresh:
            _check_content(shard, data.vocab_size)


def corrupt_files(expected: Mapping[Path, str], sums: Sums, progress: bool = False) -> list[Path]:
    """The files that differ from their sums."""
    sums_of_files = zip(expected, sums.of([(str(path), None) for path in expected]), strict=True)
    with progress_bar(progress, "files") as bar:
        read = bar.track(sums_of_files, len(expected), description="verifying")
        return [path for path, digest in read if expected[path] != digest]


def _check_content(shard: Shard, vocab_size: int) -> None:
    starts = shard.offsets
    if starts[0] != 0 or starts[-1] != len(shard.tokens) or np.any(starts[1:] <= starts[:-1]):
        raise InputError("path", f"{shard.path}.offsets", f"do not mark the starts of documents; {REMEDY}")
    if len(shard.tokens) and shard.tokens.max() >= vocab_size:
        remedy = f"holds the token {shard.tokens.max()}, but the vocabulary ends at {vocab_size - 1}; {REMEDY}"
        raise InputError("path", f"{shard.path}.bin", remedy)
