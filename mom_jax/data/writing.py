"""Writes shards: each appears whole or not at all, also when the process is killed."""

import array
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from mom_jax.data.shards import ShardInfo, token_dtype
from mom_jax.data.tokenizers import Tokenizer
from mom_jax.files import temporary_path, to_disk, write_atomically, write_sealed


def write_shards(
    folder: Path, names: Iterable[str], documents: Iterable[tuple[str, str]], tokenizer: Tokenizer
) -> dict[str, ShardInfo]:
    """Tokenises ``documents``, pairs of (name, text), into the shards of these names.

    Memory holds one document at a time. The shards are complete but for their records, which `write_record` adds: until
    then they do not count.
    """
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_Writer(folder / f"{name}.bin", tokenizer)) for name in names}
        for name, text in documents:
            writers[name].add(text)
        return {name: writer.finish() for name, writer in writers.items()}


def write_record(folder: Path, name: str, info: ShardInfo) -> None:
    """Writes ``NAME.json``, after which the shard counts as complete."""
    write_sealed(folder / f"{name}.json", dataclasses.asdict(info))


class _Writer:
    """The files of one shard while they grow."""

    def __init__(self, target: Path, tokenizer: Tokenizer):
        self._target, self._tokenizer = target, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._digest, self._offsets, self._text_bytes = hashlib.sha256(), array.array("Q", [0]), 0

    def __enter__(self) -> Self:
        self._temporary = temporary_path(self._target)
        self._stream = open(self._temporary, "wb")
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, text: str) -> None:
        ids = np.append(self._tokenizer.encode(text), self._tokenizer.eos_id).astype(self._dtype).tobytes()
        self._digest.update(ids)
        self._stream.write(ids)
        self._offsets.append(self._offsets[-1] + len(ids) // self._dtype.itemsize)
        self._text_bytes += len(text.encode())

    def finish(self) -> ShardInfo:
        to_disk(self._stream)
        os.replace(self._temporary, self._target)
        tokens, documents = self._offsets[-1], len(self._offsets) - 1
        if sys.byteorder == "big":
            self._offsets.byteswap()
        starts = self._offsets.tobytes()
        write_atomically(self._target.with_suffix(".offsets"), starts)
        sums = self._digest.hexdigest(), hashlib.sha256(starts).hexdigest()
        return ShardInfo("", tokens, documents, self._text_bytes, *sums)
