"""Several processes that train one model together, as on a pod: how they meet, and what they have to agree on.

All run the same program. A computation over devices of all of them waits until each has started it, so no process may
end, stop or raise by itself: whatever only one may know goes through the functions here.
"""

import hashlib
import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from mom_jax.errors import InputError
from mom_jax.locks import only_writer
from mom_jax.paths import absolute
from mom_jax.training.companions import Companions
from mom_jax.training.config import ProcessesConfig
from mom_jax.training.meeting import Connections, meet

_MEETING_SECONDS = 300  # that the first to come waits for the others
_PARTING_SECONDS = 60  # that the first to end waits for them; the report is written meanwhile
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # names another address to listen at, as behind a router; JAX reads it


@contextmanager
def joined(config: ProcessesConfig) -> Iterator[None]:
    """`join`, and the others end soon when this process dies in the body, or this one when one of them does."""
    companions = Companions(join(config))
    try:
        yield
    except BaseException as error:
        lost = None if isinstance(error, InputError) else companions.lost(wait=2.0)
        if lost is not None:
            raise lost from error  # what fails then fails for that
        companions.leave()
        raise
    companions.part()


def join(config: ProcessesConfig, *, sound: bool = True) -> Connections:
    """Meets the other processes, if there are others; call it before JAX is used for the first time.

    Process 0 listens at the coordinator's address and nowhere else. JAX parts from the others when this process ends. A
    process that ends alone, with an error, can say so before that; then JAX ends it and the others.

    Args:
        config: where they meet.
        sound: False tells the others that this process gives up, so that they need not wait for it.

    Returns:
        connections that the others close when they end.

    Raises:
        InputError: ``auto`` where no cluster is found, others are missing, cannot be reached, or give up.
    """
    if config.coordinator is None:
        return {}
    patience = _MEETING_SECONDS if sound else _PARTING_SECONDS
    place = _place(config, patience)
    bind = os.environ.get(_BIND, _everywhere(place[0]) if place and config.coordinator == "auto" else None)
    others = {} if place is None else meet(*place, patience, bind)
    _connect(config, None if config.coordinator == "auto" else config.coordinator, patience)
    _agree(sound)
    return others


def _connect(config: ProcessesConfig, address: str | None, patience: int) -> None:
    try:
        with warnings.catch_warnings():
            if address is not None:  # who knows all asks no cluster
                warnings.filterwarnings("ignore", "\\s*Kubernetes environment detected")
            jax.distributed.initialize(
                address,
                config.count,
                config.index,
                initialization_timeout=patience,
                shutdown_timeout_seconds=_PARTING_SECONDS,
                coordinator_bind_address=os.environ.get(_BIND, address),
            )
    except ValueError as error:  # what is missing was not found
        remedy = "finds no Slurm, Open MPI, Kubernetes or TPU pod here; give HOST:PORT of process 0, count and index"
        raise InputError("processes.coordinator", config.coordinator, remedy) from error
    except RuntimeError as error:
        remedy = f"the processes did not meet there: {' '.join(str(error).split())[:160]}"
        raise InputError("processes.coordinator", config.coordinator, remedy) from error


def _place(config: ProcessesConfig, patience: int) -> tuple[str, int, int] | None:
    """Address of process 0, number of processes, and which of them this is; None where no cluster says so."""
    if config.coordinator != "auto":
        return str(config.coordinator), config.count or 1, config.index or 0
    try:  # as JAX would itself; it has no other name for this
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, [0], None, patience)[:3]
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError("processes.coordinator", "auto", f"the cluster does not answer ({error})") from error
    return None if None in found else found  # type: ignore[return-value]


def _everywhere(address: str) -> str:
    """Where JAX lets process 0 listen if a cluster names it, for a machine may have several names."""
    return f"{'[::]' if socket.has_dualstack_ipv6() else '0.0.0.0'}:{address.rpartition(':')[2]}"


def is_first() -> bool:
    """Whether this process writes and prints what is needed once."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether ``flag`` holds in any process; all have to ask."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


@contextmanager
def together() -> Iterator[None]:
    """If the body raises in one process, it raises in all; the body must not compute over devices of other processes.

    Raises:
        InputError: another process failed; its own message says why.
    """
    try:
        yield
    except BaseException:
        any_process(True)
        raise
    _agree(True)


def _agree(sound: bool) -> None:
    if any_process(not sound) and sound:
        raise InputError("processes.index", jax.process_index(), "another process gave up; its own message says why")


def broadcast_from_first(number: int) -> int:
    """The first process's ``number`` (int32), in all."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextmanager
def shared_folder(place: Path, lock: str) -> Iterator[Path]:
    """A run's folder, absolute: the first process makes it and locks it, all have to see it.

    Raises:
        InputError: another command writes into it, or a process sees another folder there.
    """
    folder = Path(absolute(place, "run_dir"))
    with ExitStack() as stack:
        with together():
            if is_first():
                stack.enter_context(only_writer(folder, lock))
        _check_shared(folder)
        yield folder


def _check_shared(folder: Path) -> None:
    if jax.process_count() == 1:
        return
    # A name that nobody has asked for before: network file systems remember what was not there.
    mark = folder / f".shared-{broadcast_from_first(secrets.randbits(31))}"
    try:
        with together():
            if is_first():
                mark.touch()
        with together():
            if not any(mark.exists() or time.sleep(0.5) for _ in range(10)):
                remedy = "is not the folder that process 0 writes into; it has to be one that all processes share"
                raise InputError("run_dir", folder, remedy)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)


def check_same(values: Mapping[str, object], remedy: str) -> None:
    """Checks that each of ``values`` has the same text in all processes.

    Raises:
        InputError: in all of them, for the first one that differs, with ``remedy``.
    """
    if not _differs(values):
        return
    for name, value in values.items():
        if _differs((name, value)):
            raise InputError(name, value, f"is not the same in all processes; {remedy}")


def _differs(value: object) -> bool:
    digest = hashlib.sha256(str(value).encode()).digest()[:4]
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
    return len(np.unique(digests)) > 1
