"""Tokenises text into shards: in parallel, resumable, spread over machines, always the same bytes."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import filelock
import rich.progress

from mom_jax import terminal
from mom_jax.data.config import DataConfig
from mom_jax.data.plan import Unit, plan, unit_key
from mom_jax.data.shards import (
    FORMAT,
    VERSION,
    Index,
    PreparedData,
    ShardInfo,
    ShardName,
    finished_shard,
    is_complete,
    is_prepared,
    open_prepared,
    read_index,
    token_dtype,
    write_index,
    write_shard,
)
from mom_jax.data.sources import FileSource, Source, resolve
from mom_jax.data.tokenizers import Tokenizer, load_tokenizer
from mom_jax.errors import InputError
from mom_jax.files import remove_leftovers
from mom_jax.paths import local_path

# Below this much text, starting worker processes costs more than it saves.
_WORTH_WORKERS = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """What one call of `prepare` did."""

    written: int  # shards
    kept: int  # shards that were finished before
    missing: int  # shards of the folder that other --shard parts still have to write
    tokens: int  # in the shards written or kept by this call; likewise the next two
    documents: int
    text_bytes: int


def prepare(
    config: DataConfig,
    out: str | Path,
    *,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> PrepareSummary:
    """Tokenises ``config.path`` into the folder ``out``. Call it again after an interruption: finished shards are kept.

    Args:
        config: what to read and how to split it.
        out: a new folder, or one that an earlier call with the same data began.
        workers: processes; None means one per core, or none besides this one when the text is small.
        shard: ``(i, n)``: do the i-th of n equal parts (0 <= i < n). The parts share
            ``out``, or their folders are merged by copying.
        progress: show a progress bar where stderr is a terminal.

    Raises:
        InputError: bad text (file and line are named), another run's folder, or a bad ``shard`` or ``workers``.
        OSError: the disk is full.
    """
    part, parts = shard
    if not 0 <= part < parts:
        raise InputError("shard", f"{part}/{parts}", "is written i/n with 0 <= i < n")
    if workers is not None and workers < 1:
        raise InputError("workers", workers, "must be at least 1")
    out, tokenizer, units = local_path(out, "out"), load_tokenizer(config.tokenizer), plan(config)
    keys = {unit.name: unit_key(unit, config, tokenizer) for unit in units}
    _claim_folder(out, _index(units, keys, tokenizer))
    dtype = token_dtype(tokenizer.vocab_size)
    done: dict[str, ShardInfo | None] = {u.name: finished_shard(out, u.name, keys[u.name], dtype) for u in units}
    mine = units[part::parts]
    pending = [unit for unit in mine if done[unit.name] is None]
    job = functools.partial(
        _write, folder=out, keys=keys, text_field=config.text_field, tokenizer_spec=config.tokenizer
    )
    with _progress_bar(progress) as bar:
        task = bar.add_task("tokenising", total=len(mine), completed=len(mine) - len(pending))
        for name, info in _run(job, pending, _worker_count(workers, pending)):
            done[name] = info
            bar.advance(task)
    infos = [info for unit in mine if (info := done[unit.name]) is not None]
    counts = (sum(getattr(info, field) for info in infos) for field in ("tokens", "documents", "text_bytes"))
    missing = sum(info is None for info in done.values())
    return PrepareSummary(len(pending), len(mine) - len(pending), missing, *counts)


def prepared(config: DataConfig, *, workers: int | None = None, progress: bool = True) -> PreparedData:
    """The tokenised data of ``config``: opens ``config.path`` if it is prepared, else prepares it into the cache.

    The cache is keyed by the files' names, sizes and modification times, the tokenizer, the split and the format.

    Raises:
        InputError: as `prepare` and `open_prepared`, or a folder that was prepared with another tokenizer.
    """
    folder = Path(os.path.expanduser(config.path))
    if config.path != "stdlib" and is_prepared(folder):
        if config.held_out_path is not None:
            raise InputError(
                "held_out_path",
                config.held_out_path,
                f"{folder} is prepared and has its own held-out text; leave it away",
            )
    else:
        folder = _cache_folder(config)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # of several processes one prepares and the others wait
            if not is_complete(folder):
                prepare(config, folder, workers=workers, progress=progress)
    data = open_prepared(folder)
    if data.tokenizer_fingerprint != load_tokenizer(config.tokenizer).fingerprint:
        raise InputError(
            "tokenizer", config.tokenizer, f"{folder} was prepared with the tokenizer {data.tokenizer}; name that one"
        )
    return data


def own_tokenizer(config: DataConfig) -> str:
    """The tokenizer that ``config.path`` was prepared with, if it is prepared and finds its tokenizer by name.

    Otherwise that of ``config``, whether it fits or not.

    Raises:
        InputError: a damaged index.
    """
    folder = Path(os.path.expanduser(config.path))
    if config.path == "stdlib" or not is_prepared(folder):
        return config.tokenizer
    index = read_index(folder)
    try:
        found = load_tokenizer(index["tokenizer"])
    except InputError:  # a file's name, which says nothing of its folder
        return config.tokenizer
    return index["tokenizer"] if found.fingerprint == index["tokenizer_fingerprint"] else config.tokenizer


def _index(units: list[Unit], keys: dict[str, str], tokenizer: Tokenizer) -> Index:
    def named(split: str) -> list[ShardName]:
        return [{"name": u.name, "key": keys[u.name]} for u in units if u.name.rpartition("-")[0] == split]

    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "splits": {"train": named("train"), "held_out": named("held_out")},
    }


def _claim_folder(out: Path, index: Index) -> None:
    """Makes ``out`` this data's folder, or checks that it is already."""
    if out.exists() and not out.is_dir():
        raise InputError("out", out, "is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", out, f"cannot be made ({error.strerror}); give another folder") from error
    remove_leftovers(out)
    if is_prepared(out):
        if read_index(out) != index:
            raise InputError(
                "out", out, "holds shards of other text or another tokenizer; delete it or give another folder"
            )
    elif any(not path.name.endswith(".tmp") for path in out.iterdir()):
        raise InputError("out", out, "is not empty and holds no shards; delete it or give another folder")
    else:
        write_index(out, index)


def _write(
    unit: Unit, *, folder: Path, keys: dict[str, str], text_field: str, tokenizer_spec: str
) -> tuple[str, ShardInfo]:
    tokenizer = _cached_tokenizer(tokenizer_spec)
    return unit.name, write_shard(folder, unit.name, keys[unit.name], unit.documents(text_field), tokenizer)


# One load per process, not one per shard.
_cached_tokenizer = functools.cache(load_tokenizer)


def _worker_count(workers: int | None, pending: list[Unit]) -> int:
    sizes = [s.size for unit in pending for s in unit.sources]
    known = sum(size or 0 for size in sizes)
    if workers is None:
        workers = 1 if known < _WORTH_WORKERS and None not in sizes else os.cpu_count() or 1
    return min(workers, len(pending))


def _run(job: Callable[..., Any], pending: list[Any], workers: int) -> Iterator[tuple[str, ShardInfo]]:
    if workers <= 1:
        yield from map(job, pending)
        return
    # spawn: a fork of a process in which JAX has started threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(job, unit) for unit in pending]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "workers",
                workers,
                "a worker was killed (out of memory?); run again with fewer: finished shards are kept",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _progress_bar(wanted: bool) -> rich.progress.Progress:
    console = terminal.console(sys.stderr)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("shards"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(
        *columns, console=console, transient=True, disable=not (wanted and console.is_terminal)
    )


def _cache_folder(config: DataConfig) -> Path:
    """The folder in ``cache_dir`` that belongs to this text, tokenizer and split."""
    listing = [_stamp(source) for source in resolve(config.path)]
    if config.held_out_path is not None:
        listing += [_stamp(source) for source in resolve(config.held_out_path, "held_out_path")]
    tokenizer = load_tokenizer(config.tokenizer)
    fields = [config.path, config.held_out_path, config.held_out_fraction, config.text_field, config.shard_bytes]
    blob = json.dumps([VERSION, tokenizer.fingerprint, fields, listing]).encode()
    return Path(os.path.expanduser(config.cache_dir)) / "shards" / hashlib.sha256(blob).hexdigest()[:16]


def _stamp(source: Source) -> tuple[str, int, int]:
    return (source.path, source.size, source.mtime_ns) if isinstance(source, FileSource) else (source.name, 0, 0)
