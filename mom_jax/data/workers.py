"""Work spread over processes, with a progress bar."""

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import rich.progress

from mom_jax import terminal
from mom_jax.data.plan import Unit
from mom_jax.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this much text, starting worker processes costs more than it saves.
_WORTH_WORKERS = 64 * 2**20


def worker_count(workers: int | None, pending: Sequence[Unit]) -> int:
    """Processes for ``pending``: as many as wanted, or by their size."""
    sizes = [s.size for unit in pending for s in unit.sources]
    known = sum(size or 0 for size in sizes)
    if workers is None:
        workers = 1 if known < _WORTH_WORKERS and None not in sizes else os.cpu_count() or 1
    return min(workers, len(pending))


def run(job: Callable[[Item], Result], pending: Sequence[Item], workers: int) -> Iterator[Result]:
    """``job`` of each item, in this process or in ``workers`` others, as they are done.

    Raises:
        InputError: a worker was killed.
    """
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


def progress_bar(shown: bool, unit: str) -> rich.progress.Progress:
    """A bar on stderr, where that is a terminal; ``unit`` says what is counted."""
    console = terminal.console(sys.stderr)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(unit),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    )
