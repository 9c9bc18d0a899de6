"""Which shards a configuration leads to: a function of names and sizes (and of small texts), so that machines agree."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from mom_jax.data.config import DataConfig
from mom_jax.data.hub import HubSource
from mom_jax.data.json_documents import OnError, is_json_lines
from mom_jax.data.shards import SPLITS, VERSION
from mom_jax.data.shares import HashRange, stable_hash
from mom_jax.data.sources import Source
from mom_jax.data.split import Split, held_out_documents, split
from mom_jax.data.tokenizers import Tokenizer

METHOD = 2  # of planning; another one leads to other shards


@dataclasses.dataclass(frozen=True)
class Unit:
    """A shard to be, or one of each split that are written in one reading of the same sources."""

    shards: dict[str, str]  # split: name
    sources: tuple[Source, ...]
    held_out: HashRange | None = None  # of the documents' hashes, where both splits are written

    def documents(self, text_field: str, on_error: OnError) -> Iterator[tuple[str, str]]:
        """(name of the shard, text) of every document in order."""
        for source in self.sources:
            for text in source.documents(text_field, on_error):
                yield self.shards[self._split_of(text)], text

    def _split_of(self, text: str) -> str:
        if self.held_out is None:
            return next(iter(self.shards))
        return "held_out" if stable_hash(text) in self.held_out else "train"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the text is divided, and the shards in order."""

    split: Split
    units: list[Unit]

    def key(self, unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> str:
        """Hash of what decides the shards' bytes but for the text. No times: copies on other machines must agree."""
        sources = [_identity(source) for source in unit.sources]
        held_out = unit.held_out and (unit.held_out.start, unit.held_out.stop)
        parts = [VERSION, METHOD, tokenizer.fingerprint, config.text_field, unit.shards, held_out, sources]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _identity(source: Source) -> list:
    if isinstance(source, HubSource):
        return [source.name]
    passage = source.passage and (source.passage.share, source.passage.held_out)
    return [source.name, source.size, source.span, passage]


def plan(config: DataConfig) -> Plan:
    """The shards that ``config`` leads to.

    Raises:
        InputError: no text, or not enough to hold something out.
    """
    sides = split(config)
    held_out = held_out_documents(sides, config)
    if held_out is not None:
        groups = _grouped(sides.train, config.shard_bytes)
        names = [{name: f"{name}-{number:05d}" for name in SPLITS} for number in range(len(groups))]
        return Plan(sides, [Unit(n, g, held_out) for n, g in zip(names, groups, strict=True)])
    units = []
    for name, sources in zip(SPLITS, (sides.train, sides.held_out), strict=True):
        groups = _grouped(sources, config.shard_bytes)
        units += [Unit({name: f"{name}-{number:05d}"}, group) for number, group in enumerate(groups)]
    return Plan(sides, units)


def _grouped(sources: list[Source], shard_bytes: int) -> list[tuple[Source, ...]]:
    """Consecutive sources together, up to ``shard_bytes``; a streamed one stands alone, large JSON lines are cut."""
    groups: list[list[Source]] = []
    room = 0
    for source in (piece for whole in sources for piece in _pieces(whole, shard_bytes)):
        size = shard_bytes if isinstance(source, HubSource) else source.size
        if not groups or size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(source)
        room -= size
    return [tuple(group) for group in groups]


def _pieces(source: Source, shard_bytes: int) -> Iterator[Source]:
    if isinstance(source, HubSource) or source.size <= shard_bytes or not is_json_lines(Path(source.path)):
        yield source
        return
    for start in range(0, source.size, shard_bytes):
        stop = min(start + shard_bytes, source.size)
        yield dataclasses.replace(source, size=stop - start, span=(start, stop))
