"""Ends a process whose steps no longer come, with the stack of every thread."""

import faulthandler
import os
import sys
import threading
from contextlib import suppress

_GRACE = 10.0  # seconds after which it ends even if no Python code can run any more


class Watchdog:
    """Waits for `beat`, each of which starts its time anew; does nothing before the first one.

    Args:
        minutes: without a beat before the process ends with status 1; None: never.
    """

    def __init__(self, minutes: float | None):
        self._minutes, self._stream = minutes, sys.stderr  # later a progress bar may stand in its place
        self._timer: threading.Timer | None = None

    def beat(self) -> None:
        """Something has been done."""
        if self._minutes is None:
            return
        self.close()
        seconds = 60 * self._minutes
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()
        # Also when the interpreter's lock is held for ever.
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=self._stream)

    def close(self) -> None:
        """Stops waiting."""
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        line = f"watchdog_minutes={self._minutes:g}: no step was finished for so long; what every thread was doing:"
        with suppress(OSError):
            print(f"mom-jax: {line}", file=self._stream, flush=True)
            faulthandler.dump_traceback(self._stream)
            print("mom-jax: run the same command again to continue from the newest checkpoint", file=self._stream)
            self._stream.flush()
        os._exit(1)
