"""Tokenises text into shards: in parallel, resumable, spread over machines, always the same bytes."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import filelock

from mom_jax.data.amounts import Amount, describe_amounts, describe_data, describe_plan
from mom_jax.data.apart import check_apart
from mom_jax.data.config import DataConfig
from mom_jax.data.destination import claim_folder, discard, index_of
from mom_jax.data.plan import METHOD, Plan, Unit, plan
from mom_jax.data.preparation import finished, write_unit
from mom_jax.data.remote import with_local_copies
from mom_jax.data.shards import (
    SPLITS,
    VERSION,
    PreparedData,
    ShardInfo,
    is_prepared,
    mixed,
    open_prepared,
    read_index,
)
from mom_jax.data.sources import FileSource
from mom_jax.data.split import split
from mom_jax.data.sums import Sums, stamp
from mom_jax.data.tokenizers import Tokenizer, load_tokenizer
from mom_jax.data.verification import verify
from mom_jax.data.workers import progress_bar, run, worker_count
from mom_jax.errors import InputError, named_as
from mom_jax.paths import local_path


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """What one call of `prepare` did."""

    written: int  # shards
    kept: int  # shards that were finished before
    missing: int  # shards of the folder that other --shard parts still have to write
    train: Amount  # in the shards written or kept by this call
    held_out: Amount
    notes: list[str]  # what to tell the user, one line each


def prepare(
    config: DataConfig,
    out: str | Path,
    *,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> PrepareSummary:
    """Tokenises ``config.path`` into the folder ``out``.

    Call it again after an interruption: finished shards are kept, if they are whole and their text is still the same.

    Args:
        config: what to read and how to split it.
        out: a new folder, or one that an earlier call with the same data began.
        workers: processes; None means one per core, or none besides this one when the text is small.
        shard: ``(i, n)``: do the i-th of n equal parts (0 <= i < n). The parts share
            ``out``, or their folders are merged by copying.
        progress: show a progress bar where stderr is a terminal.

    Raises:
        InputError: bad text (file and line are named), no text on one side, another run's folder, or a bad ``shard``
            or ``workers``.
        OSError: the disk is full.
    """
    part, parts = shard
    if not 0 <= part < parts:
        raise InputError("shard", f"{part}/{parts}", "must be i/n with 0 <= i < n")
    if workers is not None and workers < 1:
        raise InputError("workers", workers, "must be at least 1")
    config = with_local_copies(config)
    folder, tokenizer, planned = local_path(out, "out"), load_tokenizer(config.tokenizer), plan(config)
    keys = [planned.key(unit, config, tokenizer) for unit in planned.units]
    is_new = claim_folder(folder, index_of(planned, keys, tokenizer))
    units = list(zip(planned.units, keys, strict=True))[part::parts]
    done: dict[str, ShardInfo] = {}
    try:
        written = _finish(units, done, folder, tokenizer, config, workers, progress)
        summary = _summary(planned, folder, done, written)
        if len(units) == len(planned.units):
            _check_both_sides(summary, config)
    except InputError:
        if is_new and len(done) in (0, sum(len(unit.shards) for unit, _ in units)):  # nothing worth going on from
            discard(folder)
        raise
    return summary


def _finish(
    units: list[tuple[Unit, str]],
    done: dict[str, ShardInfo],
    folder: Path,
    tokenizer: Tokenizer,
    config: DataConfig,
    workers: int | None,
    progress: bool,
) -> int:
    """Adds the shards of ``units`` to ``done``: those that are finished already, then the others; counts these."""
    pending, known, sums = [], [], Sums(config.cache_dir, folder)
    with progress_bar(progress, "shards") as bar:
        task = bar.add_task("tokenising", total=len(units))
        with sums.opened():
            for unit, key in units:
                infos = finished(unit, key, folder, tokenizer, config, sums)
                if infos is None:
                    pending.append((unit, key))
                else:
                    done.update(infos)
                    bar.advance(task)
        count = worker_count(workers, [unit for unit, _ in pending])
        try:
            for written in run(functools.partial(write_unit, folder=folder, config=config), pending, count):
                done.update(written.infos)
                known += written.sums  # neither what was read nor what was written is read again without need
                bar.advance(task)
        finally:
            with sums.opened():  # only now: other parts may work on the same folder meanwhile
                for entry in known:
                    sums.remember(*entry)
    return sum(len(unit.shards) for unit, _ in pending)


def prepared(config: DataConfig, *, workers: int | None = None, progress: bool = True) -> PreparedData:
    """The tokenised data of ``config``: opens ``config.path`` if it is prepared, else prepares it into the cache.

    The cache is keyed by the files' names, sizes and times of change, the tokenizer, the split and the format. What
    this machine has not read before is compared with its SHA-256 sums. The result's ``notes`` are lines for the user.

    Raises:
        InputError: as `prepare` and `open_prepared`, corrupt shards, or a folder that was prepared with another
            tokenizer.
    """
    if config.parts:
        texts = _each(config, lambda part: prepared(part, workers=workers, progress=progress))
        return mixed(texts, config.parts, tuple(_notes(config, texts)))
    config = with_local_copies(config)
    folder, notes, is_given = _folder(config)
    if not is_given:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # of several processes one prepares and the others wait
            if not _is_sound(folder, config.cache_dir):
                prepare(config, folder, workers=workers, progress=progress)
    data = _opened(folder, config)
    verify(data, config.cache_dir)
    return dataclasses.replace(data, notes=(*describe_data(data), *notes))


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """What `prepared` would open."""

    folder: Path
    data: PreparedData | None  # None where it would be tokenised first
    notes: list[str]  # for the user: what is there, or would be read


def foresee(config: DataConfig) -> Foreseen:
    """Looks at the data of ``config`` without writing anything, and without reading its text.

    Raises:
        InputError: as `prepared`, but for what only reading the text shows.
    """
    if config.parts:
        seen = _each(config, foresee)
        data = [text.data for text in seen if text.data is not None]
        whole = mixed(data, config.parts, ()) if len(data) == len(seen) else None
        return Foreseen(seen[0].folder.parent, whole, _notes(config, seen))
    config = with_local_copies(config)
    folder, notes, _ = _folder(config)
    if not is_prepared(folder):
        return Foreseen(folder, None, describe_plan(plan(config), config.held_out_fraction))
    data = _opened(folder, config)
    return Foreseen(folder, data, [*describe_data(data), *notes])


def _folder(config: DataConfig) -> tuple[Path, list[str], bool]:
    """Where the shards of ``config`` are or will be, what is left out, and whether the user named the folder."""
    folder = Path(os.path.expanduser(config.path))
    if config.path == "stdlib" or not is_prepared(folder):
        return *_cache_folder(config), False
    for field in ("held_out_path", "exclude"):
        if getattr(config, field):
            remedy = f"{folder} is prepared and has its own held-out text; drop this, or prepare the text again"
            raise InputError(field, getattr(config, field), remedy)
    return folder, [], True


def _opened(folder: Path, config: DataConfig) -> PreparedData:
    data = open_prepared(folder)
    if data.tokenizer_fingerprint != load_tokenizer(config.tokenizer).fingerprint:
        raise InputError(
            "tokenizer", config.tokenizer, f"{folder} was prepared with the tokenizer {data.tokenizer}; use that one"
        )
    return data


Opened = TypeVar("Opened", PreparedData, Foreseen)


def _each(config: DataConfig, look: Callable[[DataConfig], Opened]) -> list[Opened]:
    """What ``look`` finds of each part of a mixture, which it is given as data of its own."""
    with named_as("mixture", "path"):
        check_apart(config)
        return [look(dataclasses.replace(config, path=part.path, mixture=None)) for part in config.parts]


def _notes(config: DataConfig, found: Sequence[PreparedData | Foreseen]) -> list[str]:
    parts = zip(config.parts, found, strict=True)
    return [f"{part.name} ({part.weight:.1%}): {note}" for part, text in parts for note in text.notes]


def tokenizer_of_shards(config: DataConfig) -> str:
    """The tokenizer that ``config.path`` was prepared with, if it is prepared and finds its tokenizer by name.

    Otherwise that of ``config``, whether it fits or not.

    Raises:
        InputError: a damaged index.
    """
    if config.parts:
        alone = (dataclasses.replace(config, path=part.path, mixture=None) for part in config.parts)
        named = (tokenizer_of_shards(part) for part in alone)
        return next((tokenizer for tokenizer in named if tokenizer != config.tokenizer), config.tokenizer)
    config = with_local_copies(config)
    folder = Path(os.path.expanduser(config.path))
    if config.path == "stdlib" or not is_prepared(folder):
        return config.tokenizer
    index = read_index(folder)
    try:
        tokenizer = load_tokenizer(index["tokenizer"])
    except InputError:  # a file's name, which says nothing of its folder
        return config.tokenizer
    return index["tokenizer"] if tokenizer.fingerprint == index["tokenizer_fingerprint"] else config.tokenizer


def _is_sound(folder: Path, cache_dir: str) -> bool:
    if not is_prepared(folder):
        return False
    try:
        verify(open_prepared(folder), cache_dir)
    except InputError:
        return False
    return True


def _cache_folder(config: DataConfig) -> tuple[Path, list[str]]:
    """The folder in ``cache_dir`` that belongs to this text, tokenizer and split; and what was left out of it."""
    sides, tokenizer = split(config), load_tokenizer(config.tokenizer)
    listing = [
        [
            (source.name, source.path, stamp(source.path)) if isinstance(source, FileSource) else source.name
            for source in side
        ]
        for side in (sides.train, sides.held_out)
    ]
    fields = [config.held_out_fraction, config.text_field, config.shard_bytes, config.on_error]
    blob = json.dumps([VERSION, METHOD, tokenizer.fingerprint, sides.rule, fields, listing]).encode()
    name = hashlib.sha256(blob).hexdigest()[:16]
    return Path(os.path.expanduser(config.cache_dir)) / "shards" / name, sides.notes


def _summary(planned: Plan, folder: Path, done: dict[str, ShardInfo], written: int) -> PrepareSummary:
    names = [(side, name) for unit in planned.units for side, name in unit.shards.items()]
    train, held_out = (
        Amount.of(done[name] for side, name in names if side == split and name in done) for split in SPLITS
    )
    missing = sum(not (folder / f"{name}.json").exists() for _, name in names if name not in done)
    what = "text of this part" if missing or len(done) < len(names) else "text"
    notes = describe_amounts(train, held_out, planned.split.rule, what) + planned.split.notes
    return PrepareSummary(written, len(done) - written, missing, train, held_out, notes)


def _check_both_sides(summary: PrepareSummary, config: DataConfig) -> None:
    for side, field in (("train", "path"), ("held_out", "held_out_path")):
        if getattr(summary, side).tokens:
            continue
        skipped = "; ".join(note for note in summary.notes if note.startswith("skipped"))
        place = field if getattr(config, field) is not None else "path"
        why = f"has no {side.replace('_', '-')} text{f' ({skipped})' if skipped else ''}"
        raise InputError(place, getattr(config, place), f"{why}; give more text, or held_out_path")
