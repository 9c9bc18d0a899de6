"""The shard format: writing, opening, checking, and reading tokens across shards.

A prepared folder holds ``index.json`` (tokenizer, dtype, the names of all shards) and three files per shard:

- ``NAME.bin``: token ids, little-endian uint16 (uint32 above 65,536 ids), one end token after every document;
- ``NAME.offsets``: little-endian uint64 [documents + 1], where each document starts in ``NAME.bin``, and its length;
- ``NAME.json``: counts and SHA-256 sums. It is written last, so a shard with this file is complete.

Both JSON files end with a SHA-256 of the rest of them. Nothing in the folder depends on the machine, the time or the
number of workers.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from mom_jax.data.mixture import Part
from mom_jax.errors import InputError
from mom_jax.files import read_json, read_record, read_sealed, write_sealed

FORMAT = "mom-jax-shards"
VERSION = 1
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """The content of ``NAME.json``."""

    key: str  # hash of all that the shard is made from
    tokens: int  # end tokens included
    documents: int
    text_bytes: int  # UTF-8 bytes of the documents' text
    bin_sha256: str
    offsets_sha256: str
    content: str = ""  # hash of the text files that it was made from, as they are stored
    skipped: int = 0  # broken files and documents that were left out
    skipped_example: str = ""


class ShardName(TypedDict):
    """A shard in ``index.json``."""

    name: str
    key: str


class Index(TypedDict):
    """The content of ``index.json``."""

    format: str
    version: int
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eos_id: int
    dtype: str
    splits: dict[str, list[ShardName]]
    rule: NotRequired[str]  # what decided which text is held out; older folders do not say


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def finished_shard(folder: Path, name: str, key: str, dtype: np.dtype) -> ShardInfo | None:
    """The shard's record if it is complete and made from the same things, else None."""
    try:
        return _shard_info(folder, name, key, dtype)
    except InputError:
        return None


def _shard_info(folder: Path, name: str, key: str, dtype: np.dtype) -> ShardInfo:
    """The record of a complete shard; what is missing, damaged or of another size is named in the error."""
    path, remedy = folder / f"{name}.json", "delete it and prepare the data again"
    if not path.exists():
        others = "run the other --shard i/n parts, or run the same command again"
        raise InputError("path", folder, f"shard {name} is not prepared yet; {others}")
    info = read_record(path, ShardInfo, remedy)
    if info.key != key:
        raise InputError("path", path, f"does not belong to this folder's index.json; {remedy}")
    for suffix, size in ((".bin", info.tokens * dtype.itemsize), (".offsets", (info.documents + 1) * 8)):
        file = folder / f"{name}{suffix}"
        if not file.is_file():
            raise InputError("path", file, f"is missing; delete {path.name} and prepare the data again")
        if file.stat().st_size != size:
            raise InputError("path", file, f"has {file.stat().st_size:,} bytes instead of {size:,}; {remedy}")
    return info


def write_index(folder: Path, index: Index) -> None:
    """Writes ``index.json``; the same data and tokenizer give the same bytes."""
    write_sealed(folder / "index.json", index)


def read_index(folder: Path) -> Index:
    """The content of ``index.json``.

    Raises:
        InputError: it is missing, damaged, of another format version, or names files outside the folder.
    """
    path = folder / "index.json"
    if not path.exists():
        raise InputError("path", folder, "is not a prepared folder: it has no index.json")
    remedy = "delete the folder and prepare the data again"
    content = read_json(path, dict[str, Any], remedy)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise InputError(
            "path", path, f"has version {content.get('version')}; this program reads {VERSION}: prepare the data again"
        )
    index = read_sealed(path, Index, remedy)
    for split in SPLITS:
        for shard in index["splits"].get(split, ()):
            if not re.fullmatch(r"[\w-]+", shard["name"]):
                raise InputError("path", path, f"names the shard {shard['name']!r}, which is not a file name; {remedy}")
        if split not in index["splits"]:
            raise InputError("path", path, f"is damaged (no {split!r} among its splits); {remedy}")
    names = [shard["name"] for split in SPLITS for shard in index["splits"][split]]
    if len(set(names)) < len(names):
        raise InputError("path", path, f"is damaged (it lists a shard twice); {remedy}")
    if index["dtype"] != token_dtype(index["vocab_size"]).str or not 0 <= index["eos_id"] < index["vocab_size"]:
        raise InputError("path", path, f"is damaged (dtype, eos_id and vocab_size do not agree); {remedy}")
    return index


def is_prepared(folder: Path) -> bool:
    """Whether ``folder`` is one that preparing the data wrote (complete or not, whole or damaged)."""
    try:
        with open(folder / "index.json", "rb") as stream:
            return FORMAT.encode() in stream.read(64)
    except OSError:
        return False


class Shard:
    """One complete shard, memory-mapped."""

    def __init__(self, folder: Path, name: str, key: str, dtype: np.dtype):
        self.path, self._dtype = folder / name, dtype
        self.info = info = _shard_info(folder, name, key, dtype)
        # Plain views, since slicing an np.memmap costs several times as much. An empty file cannot be mapped.
        self.tokens = np.asarray(np.memmap(self._file(".bin"), dtype, "r")) if info.tokens else np.zeros(0, dtype)
        self.offsets = np.asarray(np.memmap(self._file(".offsets"), "<u8", "r"))

    def sums(self) -> dict[Path, str]:
        """The SHA-256 that each file should have."""
        return files_of(self.path, self.info)

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def files_of(path: Path, info: ShardInfo) -> dict[Path, str]:
    """The files of the shard at ``path``, which has no suffix, and the SHA-256 that each should have."""
    sums = {".bin": info.bin_sha256, ".offsets": info.offsets_sha256}
    return {path.with_name(path.name + suffix): digest for suffix, digest in sums.items()}


class TokenStream:
    """All tokens of one split, end to end over its shards; nothing is loaded before it is read."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards
        self._starts = np.cumsum([0, *(shard.info.tokens for shard in shards)])
        self.documents = sum(shard.info.documents for shard in shards)
        self.text_bytes = sum(shard.info.text_bytes for shard in shards)

    def __len__(self) -> int:
        """Number of tokens, end tokens included."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens ``start`` to ``stop`` (at most to the end).

        Returns:
            ids, int32 [T], and is_first, bool [T]: whether a document starts at that token.
        """
        stop = min(stop, len(self))
        ids = np.empty(max(stop - start, 0), np.int32)
        is_first = np.zeros(ids.shape, bool)
        at, number = start, int(np.searchsorted(self._starts, start, side="right")) - 1
        while at < stop:
            shard, base = self.shards[number], int(self._starts[number])
            end = min(stop, int(self._starts[number + 1]))
            ids[at - start : end - start] = shard.tokens[at - base : end - base]
            low, high = np.searchsorted(shard.offsets, np.array([at - base, end - base], np.uint64))
            is_first[shard.offsets[low:high].astype(np.int64) + (base - start)] = True
            at, number = end, number + 1
        return ids, is_first


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """An opened prepared folder."""

    folder: Path
    tokenizer: str  # its name; `tokenizer_fingerprint` decides whether two are the same
    tokenizer_fingerprint: str
    vocab_size: int
    eos_id: int
    fingerprint: str  # of all tokens of both splits and of the tokenizer
    train: TokenStream
    held_out: TokenStream
    rule: str  # what decided which text is held out; empty where that is not known
    notes: tuple[str, ...] = ()  # lines for the user
    parts: tuple[tuple[Part, TokenStream], ...] = ()  # of a mixture, with their training text

    @property
    def shards(self) -> list[Shard]:
        """All shards of both splits."""
        return self.train.shards + self.held_out.shards


def open_prepared(folder: str | Path) -> PreparedData:
    """Opens a prepared folder; checks that every shard is there and has its full size, but not what is in it.

    Raises:
        InputError: no prepared folder, another format version, a missing or truncated shard, an empty split.
    """
    folder = Path(folder)
    index = read_index(folder)
    dtype = token_dtype(index["vocab_size"])
    streams = {}
    for split in SPLITS:
        streams[split] = TokenStream([Shard(folder, s["name"], s["key"], dtype) for s in index["splits"][split]])
        if len(streams[split]) == 0:
            raise InputError("path", folder, f"has no {split.replace('_', '-')} text; give more text, or held_out_path")
    sums = [s.info.bin_sha256 + s.info.offsets_sha256 for split in SPLITS for s in streams[split].shards]
    fingerprint = hashlib.sha256(json.dumps([index, sums], indent=1).encode() + b"\n").hexdigest()[:32]
    return PreparedData(
        folder,
        index["tokenizer"],
        index["tokenizer_fingerprint"],
        index["vocab_size"],
        index["eos_id"],
        fingerprint,
        streams["train"],
        streams["held_out"],
        index.get("rule", ""),
    )


def mixed(texts: Sequence[PreparedData], parts: Sequence[Part], notes: tuple[str, ...]) -> PreparedData:
    """Several opened folders of one tokenizer as a mixture.

    The fingerprint is that of the parts, their names and their weights.
    """
    identity = [(part.name, part.weight, text.fingerprint) for part, text in zip(parts, texts, strict=True)]
    return dataclasses.replace(
        texts[0],
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        train=TokenStream([shard for text in texts for shard in text.train.shards]),
        held_out=TokenStream([shard for text in texts for shard in text.held_out.shards]),
        rule="mixture",
        notes=notes,
        parts=tuple(zip(parts, (text.train for text in texts), strict=True)),
    )
