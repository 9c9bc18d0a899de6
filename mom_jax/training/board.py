"""TensorBoard's file of scalars, written by the thread that trains, so that a full disk is met there."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # made when imported
from tensorboardX.summary import scalar

_FLUSH_SECONDS = 30


def scalars(metrics: dict[str, Any], group: str) -> dict[str, float]:
    """Numbers by tags, those in lists one by one: ``train/load/layer_0/memory_2``."""
    found = {}
    for name, value in metrics.items():
        values = np.asarray(value)
        labels = ("layer", "memory")[: values.ndim]
        for index in np.ndindex(values.shape):
            places = (f"{label}_{i}" for label, i in zip(labels, index, strict=True))
            found["/".join([group, name, *places])] = float(values[index])
    return found


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

    def log(self, step: int, metrics: dict[str, Any], group: str) -> None:
        """Writes a point of each curve; what was written shows within half a minute of training."""
        for tag, value in scalars(metrics, group).items():
            self._events.write_event(Event(summary=scalar(tag, value), step=step, wall_time=time.time()))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def back_to(self, step: int) -> None:
        """What was said of later steps is void."""
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()
