"""One unit of a preparation: whether its shards are finished, and how they are written."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from mom_jax.data.config import DataConfig
from mom_jax.data.documents import Skips, error_handler
from mom_jax.data.plan import Unit
from mom_jax.data.shards import ShardInfo, files_of, finished_shard, token_dtype
from mom_jax.data.sources import FileSource
from mom_jax.data.sums import Place, Sums, stamp, sum_of
from mom_jax.data.tokenizers import Tokenizer, load_tokenizer
from mom_jax.data.verification import corrupt_files
from mom_jax.data.writing import write_record, write_shards

Infos = dict[str, ShardInfo]  # by the shard's name


@dataclasses.dataclass(frozen=True)
class Written:
    """What writing a unit gave."""

    infos: Infos
    sums: list[tuple[Place, list[int], str]]  # of the files that were read and written: stamp and sum


def finished(unit: Unit, key: str, folder: Path, tokenizer: Tokenizer, config: DataConfig, sums: Sums) -> Infos | None:
    """The records of a unit's shards if they are whole and made from text that is still the same, else None."""
    dtype = token_dtype(tokenizer.vocab_size)
    infos = {name: finished_shard(folder, name, key, dtype) for name in unit.shards.values()}
    whole = {name: info for name, info in infos.items() if info is not None}
    if len(whole) < len(infos) or (config.on_error == "stop" and any(info.skipped for info in whole.values())):
        return None
    content = _content(sums.of(_places(unit)))
    if any(info.content != content for info in whole.values()):
        return None
    files = {path: digest for name, info in whole.items() for path, digest in files_of(folder / name, info).items()}
    return None if corrupt_files(files, sums) else whole


def write_unit(job: tuple[Unit, str], *, folder: Path, config: DataConfig) -> Written:
    """Tokenises a unit into its shards; ``job`` is the unit and its key."""
    unit, key = job
    read = [(place, stamp(place[0]), sum_of(place)) for place in _places(unit)]
    on_error = error_handler(config.on_error)
    documents = unit.documents(config.text_field, on_error)
    infos = write_shards(folder, unit.shards.values(), documents, _tokenizer(config.tokenizer))
    wrote = [
        ((str(path), None), stamp(path), digest)
        for name, info in infos.items()
        for path, digest in files_of(folder / name, info).items()
    ]
    content, problems = _content(digest for *_, digest in read), _problems(on_error, unit)
    for name, info in infos.items():
        infos[name] = dataclasses.replace(info, key=key, content=content, **problems)
        write_record(folder, name, infos[name])
        problems = {}  # of a unit's two shards the first says what was skipped
    return Written(infos, read + wrote)


# One load per process, not one per shard.
_tokenizer = functools.cache(load_tokenizer)


def _places(unit: Unit) -> list[Place]:
    return [(source.path, source.span) for source in unit.sources if isinstance(source, FileSource)]


def _content(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _problems(on_error: object, unit: Unit) -> dict:
    if not isinstance(on_error, Skips) or on_error.example is None:
        return {}
    if any(isinstance(s, FileSource) and s.passage and s.passage.held_out for s in unit.sources):
        return {}  # told of the other side of the same files
    example = str(on_error.example)
    for source in unit.sources:
        if isinstance(source, FileSource):  # shards are the same on every machine
            example = example.replace(source.path, source.name)
    return {"skipped": on_error.count, "skipped_example": example}
