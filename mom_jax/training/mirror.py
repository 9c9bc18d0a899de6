"""A run at an address while it is trained: copied in the background, one checkpoint after the other."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mom_jax.data.remote import check_address, is_address
from mom_jax.errors import InputError, in_a_line
from mom_jax.training.config import TrainConfig
from mom_jax.training.extensions import Callback
from mom_jax.training.processes import is_first, together
from mom_jax.training.remote_run import RemoteRun

_log = logging.getLogger(__name__)


class Mirror(Callback):
    """Copies a run to its address in the background, whenever a checkpoint is whole.

    Args:
        run: whose writer this process is.
        keep: so many checkpoints stay there.
    """

    def __init__(self, run: RemoteRun, keep: int):
        self._run, self._keep, self._pool = run, keep, ThreadPoolExecutor(1)
        self._copying: Future[None] | None = None

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Starts to copy what is whole now; what was being copied before is waited for.

        Raises:
            InputError: another command has become the writer.
        """
        self._wait(_log.warning)
        self._copying = self._pool.submit(self._run.push, self._keep)

    def finish(self) -> None:
        """Copies what is left.

        Raises:
            InputError: it cannot be copied, or another command has become the writer.
        """
        self._wait(_log.debug)  # it is tried once more
        self._copying = self._pool.submit(self._run.push, self._keep)
        self._pool.shutdown()
        self._wait(self._give_up)

    def _wait(self, complain: Callable[[str], None]) -> None:
        copying, self._copying = self._copying, None
        try:
            if copying is not None:
                copying.result()
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 (each file system has exceptions of its own)
            why, folder = in_a_line(error), self._run.folder
            complain(f"{self._run.address}: could not be written to ({why}); the run is in {folder}")

    def _give_up(self, complaint: str) -> None:
        remedy = f"{complaint.partition(': ')[2]}: run the same command again to copy it"
        raise InputError("run_dir", self._run.address, remedy)


def check_address_of(config: TrainConfig) -> None:
    """Raises `InputError` where the run has an address and its file system is not known here."""
    if is_address(config.run_dir):
        check_address(config.run_dir, "run_dir", local=True)


@contextmanager
def mirrored(config: TrainConfig, folder: Path) -> Iterator[tuple[Sequence[Callback], Sequence[str]]]:
    """Keeps a run's address, if it has one, up to date with the folder that is trained in.

    Returns:
        what is to be told of checkpoints, in the first process; what the user should know.

    Raises:
        InputError: nothing can be written there; at the end, what was not copied.
    """
    with ExitStack() as stack:
        with together():
            mine = is_first() and is_address(config.run_dir)
            mirror, notes = stack.enter_context(_mirror(config, folder)) if mine else (None, [])
        yield () if mirror is None else (mirror,), notes


@contextmanager
def _mirror(config: TrainConfig, folder: Path) -> Iterator[tuple[Mirror, Sequence[str]]]:
    run = RemoteRun(config.run_dir, folder)
    run.claim()
    notes = [] if run.goes_on() else run.fetch()
    mirror = Mirror(run, config.checkpoint.keep)
    try:
        yield mirror, notes
    except BaseException:
        try:
            mirror.finish()
        except InputError as error:  # beside what ends the run
            _log.warning(error)
        raise
    mirror.finish()
