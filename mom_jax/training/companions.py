"""The other processes of a run: when one of them dies, all end soon, and say which it was.

They wait for each other inside of computations, some for ever. JAX looks for processes that are gone once in a while,
and ends the others with a stack trace; here the operating system tells, as it closes a dead process's connections.
"""

import os
import selectors
import socket
import sys
import threading
from contextlib import suppress

from mom_jax.errors import InputError
from mom_jax.training.meeting import Connections, heard, say

GRACE_SECONDS = 10.0  # in which a process may end by itself, and say why, after another one has


class Companions:
    """Listens to the processes at the other ends of `meet`'s connections, in a thread, until `part`.

    Args:
        connections: open ones.
        grace: seconds after which this process ends when another one has.
    """

    def __init__(self, connections: Connections, grace: float = GRACE_SECONDS):
        self._connections, self._grace = connections, grace
        self._lost, self._told = -1, False
        self._has_lost, self._parted = threading.Event(), threading.Event()
        if connections:
            waiting = selectors.DefaultSelector()
            for index, connection in connections.items():
                connection.settimeout(None)
                waiting.register(connection, selectors.EVENT_READ, index)
            threading.Thread(target=self._listen, args=[waiting], daemon=True).start()

    def part(self) -> None:
        """This process is done, as it should be: the others need not end with it."""
        self._parted.set()
        for connection in self._connections.values():
            say(connection, {"done": True})

    def leave(self) -> None:
        """This process ends with an error, and the others shall not wait for it."""
        self._parted.set()
        for connection in self._connections.values():
            say(connection, {"left": True})
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def lost(self, wait: float = 0.0) -> InputError | None:
        """What to say of a process that has ended before the others; None if none does so in the time to wait."""
        if not self._connections or not self._has_lost.wait(wait):
            return None
        self._told = True
        return self._complaint()

    def _complaint(self) -> InputError:
        remedy = "this process ended before the others; its own message says why. Start all again to go on from"
        return InputError("processes.index", self._lost, f"{remedy} the newest checkpoint")

    def _listen(self, waiting: selectors.BaseSelector) -> None:
        with waiting:
            while waiting.get_map():
                for key, _ in waiting.select():
                    said = heard(self._connections[key.data])
                    waiting.unregister(key.fileobj)
                    if "done" not in said:
                        self._lost = said.get("lost", key.data)
                        self._end(in_haste=self._lost == 0 and not said)
                        return

    def _end(self, in_haste: bool) -> None:
        """Ends this process if it does not do so by itself; ``in_haste`` at once, before JAX does with a stack trace.

        JAX does where process 0 was killed.
        """
        if self._parted.is_set():  # by then connections end because this process does
            return
        if not in_haste:
            self._has_lost.set()
            for connection in self._connections.values():
                say(connection, {"lost": self._lost})
            if self._parted.wait(self._grace):
                return
        with suppress(OSError):
            if not self._told:
                print(f"mom-jax: {self._complaint()}", file=sys.stderr, flush=True)
        os._exit(1)
