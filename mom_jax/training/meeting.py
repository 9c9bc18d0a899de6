"""How several processes meet before JAX connects them: process 0 waits for the others, and knows who is missing.

JAX ends a process with a stack trace where another one does not come, and does not say which.
"""

import json
import socket
import time
from contextlib import closing
from typing import Any

from mom_jax.errors import InputError

_ANSWER_SECONDS = 5.0  # in which whoever connects says who it is

Connections = dict[int, socket.socket]  # by the number of the process at the other end


def meet(address: str, count: int, index: int, patience: float, bind: str | None = None) -> Connections:
    """Returns when all processes have come.

    Args:
        address: HOST:PORT of process 0, which listens there until all have come, and is free again then.
        count, index: how many processes there are, and the number of this one.
        patience: seconds to wait.
        bind: HOST:PORT that process 0 listens at, if it is another one.

    Returns:
        open connections: of process 0 to all others, of these to process 0.

    Raises:
        InputError: process 0 cannot listen there or does not answer, others are missing (it names them), or two
            processes have the same number or other counts.
    """
    others, missing = (
        _gather(bind or address, count, patience) if index == 0 else _announce(address, count, index, patience)
    )
    if missing:
        for connection in others.values():
            connection.close()
        named = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing))
        remedy = f"{named} did not come to {address} within {patience:g} s; start all, and see what they say"
        raise InputError("processes.count", count, remedy)
    return others


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _gather(address: str, count: int, patience: float) -> tuple[Connections, list[int]]:
    """In process 0: those that came, and the numbers of those that did not, which the others are told."""
    try:
        family, *_, place = socket.getaddrinfo(*_split(address), type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(place[:2], family=family, backlog=count, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        remedy = f"process 0 cannot listen there ({error}); give a free port of its own machine"
        raise InputError("processes.coordinator", address, remedy) from error
    come: Connections = {}
    last = time.monotonic() + patience
    with closing(listener):
        while len(come) < count - 1 and (left := last - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                break
            _admit(connection, count, come)
    missing = sorted(set(range(1, count)) - come.keys())
    for connection in come.values():
        say(connection, {"missing": missing})
    return come, missing


def _admit(connection: socket.socket, count: int, come: Connections) -> None:
    connection.settimeout(_ANSWER_SECONDS)
    said = heard(connection)
    index = said.get("index")
    refusal = ""
    if not isinstance(index, int):
        pass  # somebody else, who knocks at every port
    elif said.get("count") != count or not 0 < index < count:
        refusal = f"process 0 was told that there are {count} processes"
    elif index in come and not _has_left(come[index]):
        refusal = "another process has this number"
    else:
        come[index] = connection
        return
    say(connection, {"refused": refusal})
    connection.close()


def _has_left(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _announce(address: str, count: int, index: int, patience: float) -> tuple[Connections, list[int]]:
    """In the others: what process 0 says, which may begin later."""
    last = time.monotonic() + patience
    while True:
        why: object = "it ended"
        try:
            connection = socket.create_connection(_split(address), timeout=10)
            connection.settimeout(max(last - time.monotonic(), 0) + _ANSWER_SECONDS)
            say(connection, {"index": index, "count": count})
            said = heard(connection)
            if "missing" in said:
                return {0: connection}, said["missing"]
            connection.close()
        except (OSError, OverflowError) as error:
            said, why = {}, error
        if "refused" in said:
            raise InputError("processes.index", index, f"{said['refused']}; give each process its own number")
        if isinstance(why, socket.gaierror | OverflowError) or time.monotonic() > last:
            remedy = f"process 0 does not answer there ({why}); start it too, and make sure that its port is open"
            raise InputError("processes.coordinator", address, remedy)
        time.sleep(0.5)


def say(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message, if there is still somebody who hears it."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        connection.close()


def heard(connection: socket.socket) -> dict[str, Any]:
    """A message; none from a connection that ends, takes too long, or says something else."""
    content = b""
    try:
        while not content.endswith(b"\n") and len(content) < 2**16 and (more := connection.recv(2**12)):
            content += more
        message = json.loads(content)
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}
