"""TensorBoard's file of scalars, written by the thread that trains, so that a full disk is met there."""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_FLUSH_SECONDS = 30


class Board:
    """A file of one sitting in ``folder``, which is made.

    Args:
        folder: where TensorBoard looks.
        first_step: the sitting's first; what earlier files say of it and later ones is void.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # Absolute, for "s3:..." would be taken for a bucket.
        self._events = EventsWriter(str(folder.absolute() / "events"), f".{first_step}")
        self._flushed = time.monotonic()
        self._events.write_event(Event(step=first_step, file_version="brain.Event:2"))
        self._events.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Writes one point of a curve; what was written shows within half a minute of training."""
        self._events.write_event(Event(summary=scalar(tag, value), step=step, wall_time=time.time()))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()
