"""Several processes that train one model together, as on a pod: how they meet, and what they have to agree on.

All run the same program. A computation over devices of all of them waits until each has started it, so no process may
end, stop or raise by itself: whatever only one may know goes through the functions here.
"""

import hashlib
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from mom_jax.errors import InputError
from mom_jax.training.config import ProcessesConfig

_PARTING_SECONDS = 60  # that the first to end waits for the others; the report is written meanwhile


def join(config: ProcessesConfig) -> None:
    """Meets the other processes, if there are others; call it before JAX is used for the first time.

    JAX parts from them when this process ends. A process that ends alone, with an error, can say so before that; then
    JAX ends it and the others.

    Raises:
        InputError: ``auto`` where no cluster is found, or the others cannot be reached.
    """
    if config.coordinator is None:
        return
    address = None if config.coordinator == "auto" else config.coordinator
    if address is not None and config.index:
        wait_for(address, seconds=300)
    try:
        jax.distributed.initialize(address, config.count, config.index, shutdown_timeout_seconds=_PARTING_SECONDS)
    except ValueError as error:  # what is missing was not found
        remedy = "finds no Slurm, Open MPI, Kubernetes or TPU pod here; give HOST:PORT of process 0, count and index"
        raise InputError("processes.coordinator", config.coordinator, remedy) from error
    except RuntimeError as error:
        remedy = f"the processes did not meet there: {' '.join(str(error).split())[:160]}"
        raise InputError("processes.coordinator", config.coordinator, remedy) from error


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
                remedy = f"process 0 does not answer there ({error}); start it too, and see that its port is open"
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
    if any_process(False):
        raise InputError("processes.index", jax.process_index(), "another process gave up; its own message says why")


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
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
    return len(np.unique(found)) > 1
