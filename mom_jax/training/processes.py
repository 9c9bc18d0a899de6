"""Several processes that train one model together, as on a pod: how they meet, and what they have to agree on.

All run the same program. A computation over devices of all of them waits until each has started it, so no process may
end, stop or raise by itself: whatever only one may know goes through the functions here.
"""

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mom_jax.errors import InputError
from mom_jax.locks import only_writer
from mom_jax.paths import absolute
from mom_jax.training.config import ProcessesConfig

_MEETING_SECONDS = 300  # that the first to come waits for the others
_PARTING_SECONDS = 60  # that the first to end waits for them; the report is written meanwhile
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # names another address to listen at, as behind a router; JAX reads it


def join(config: ProcessesConfig, *, sound: bool = True) -> None:
    """Meets the other processes, if there are others; call it before JAX is used for the first time.

    Process 0 listens at the coordinator's address and nowhere else. JAX parts from the others when this process ends. A
    process that ends alone, with an error, can say so before that; then JAX ends it and the others.

    Args:
        config: where they meet.
        sound: False tells the others that this process gives up, so that they need not wait for it.

    Raises:
        InputError: ``auto`` where no cluster is found, the others cannot be reached, or one of them gives up.
    """
    if config.coordinator is None:
        return
    address = None if config.coordinator == "auto" else config.coordinator
    patience = _MEETING_SECONDS if sound else _PARTING_SECONDS
    if address is not None:
        if config.index:
            wait_for(address, patience)
        elif _BIND not in os.environ:
            _check_coordinator(address)
    _connect(config, address, patience)
    _agree(sound)


def _connect(config: ProcessesConfig, address: str | None, patience: int) -> None:
    try:
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


def _check_coordinator(address: str) -> None:
    """Whether this machine can listen at HOST:PORT; where it cannot, JAX would end this process with a stack trace."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except (OSError, OverflowError) as error:
        remedy = f"process 0 cannot listen there ({error}); give a free port of its own machine"
        raise InputError("processes.coordinator", address, remedy) from error


def wait_for(address: str, seconds: float) -> None:
    """Returns when process 0 listens at HOST:PORT; JAX would end this process with a stack trace if it does not.

    Raises:
        InputError: there is no such host, or nobody listens there for so long.
    """
    host, _, port = address.rpartition(":")
    last = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, socket.gaierror | OverflowError) or time.monotonic() > last:
                remedy = f"process 0 does not answer there ({error}); start it too, and make sure that its port is open"
                raise InputError("processes.coordinator", address, remedy) from error
        time.sleep(0.5)


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
