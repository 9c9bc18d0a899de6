"""A polite end: the first SIGTERM, SIGINT or SIGHUP (its terminal closed) asks the run to stop, the second ends it."""

import os
import signal
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Notes the first signal while it is entered; a second one ends the process with status 128 + signal.

    Use it as a context manager in the main thread; the former handlers return on exit. A signal that is ignored stays
    so, as after ``nohup``.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Self:
        heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._former = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return "" if self.signal is None else signal.Signals(self.signal).name

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
