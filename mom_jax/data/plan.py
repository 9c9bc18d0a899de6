"""Which shards a configuration leads to: a function of names and sizes alone, so that all machines agree."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

from mom_jax.data.config import DataConfig
from mom_jax.data.held_out import TooFewItems, held_out_below, stable_hash
from mom_jax.data.shards import VERSION
from mom_jax.data.sources import FileSource, HubSource, Source, resolve
from mom_jax.data.tokenizers import Tokenizer
from mom_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Unit:
    """One shard to be: which sources it reads, and which of their documents it keeps."""

    name: str
    sources: tuple[Source, ...]
    bound: int | None = None  # documents whose hash lies below are held out; None keeps every document
    held_out: bool = False

    def documents(self, text_field: str) -> Iterator[str]:
        """The documents of this shard in order."""
        for source in self.sources:
            for text in source.documents(text_field):
                if self.bound is None or (stable_hash(text) < self.bound) == self.held_out:
                    yield text


def plan(config: DataConfig) -> list[Unit]:
    """The shards that ``config`` leads to, in order. It depends on names and sizes (and a lone file's text) alone.

    Raises:
        InputError: no text, or not enough files or documents to hold something out.
    """
    sources = resolve(config.path)
    if config.held_out_path is not None:
        held_out = resolve(config.held_out_path, "held_out_path")
        if {_place(s) for s in sources} & {_place(s) for s in held_out}:
            remedy = "overlaps path: held-out text must not be trained on"
            raise InputError("held_out_path", config.held_out_path, remedy)
        return _grouped("train", sources, config) + _grouped("held_out", held_out, config)
    if len(sources) == 1:
        return _split_by_document(sources[0], config)
    bound = held_out_below((stable_hash(s.name) for s in sources), config.held_out_fraction)
    train = [s for s in sources if stable_hash(s.name) >= bound]
    held_out = [s for s in sources if stable_hash(s.name) < bound]
    return _grouped("train", train, config) + _grouped("held_out", held_out, config)


def _place(source: Source) -> str:
    return source.path if isinstance(source, FileSource) else source.name


def _split_by_document(source: Source, config: DataConfig) -> list[Unit]:
    hashes = (stable_hash(text) for text in source.documents(config.text_field))
    try:
        bound = held_out_below(hashes, config.held_out_fraction)
    except TooFewItems as error:
        remedy = "is a single document, so none can be held out; give more files, or held_out_path"
        raise InputError("path", config.path, remedy) from error
    return [Unit("train-00000", (source,), bound), Unit("held_out-00000", (source,), bound, held_out=True)]


def _grouped(split: str, sources: list[Source], config: DataConfig) -> list[Unit]:
    """Consecutive sources together, up to ``shard_bytes``; a larger file or a streamed one stands alone."""
    groups: list[list[Source]] = []
    room = 0
    for source in sources:
        size = config.shard_bytes if isinstance(source, HubSource) else source.size
        if not groups or size > room:
            groups.append([])
            room = config.shard_bytes
        groups[-1].append(source)
        room -= size
    return [Unit(f"{split}-{number:05d}", tuple(group)) for number, group in enumerate(groups)]


def unit_key(unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> str:
    """Hash of what decides the shard's bytes. No modification times: copies on other machines must agree."""
    sources = [(source.name, source.size) for source in unit.sources]
    parts = [VERSION, tokenizer.fingerprint, config.text_field, unit.name, unit.bound, unit.held_out, sources]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
