"""What the steps since the last record come to, and how fast they were."""

import time
from typing import Any

import jax
import numpy as np

from mom_jax.ops.router_statistics import dead_memories
from mom_jax.training.step import Metrics


class Summary:
    """Gathers the metrics of steps, which stay on the device until they are asked for.

    Args:
        started: when the sitting began, by `time.monotonic`.
    """

    def __init__(self, started: float):
        self._started = self._since = started
        self._pending: list[Metrics] = []
        self._timed = 0  # steps since the clock was restarted
        self.waited = 0.0  # seconds for batches, since the last record

    def __bool__(self) -> bool:
        """Whether there are steps that no record holds."""
        return bool(self._pending)

    def add(self, metrics: Metrics) -> None:
        """Takes in a step that was started."""
        self._pending.append(metrics)
        self._timed += 1

    def restart_clock(self) -> None:
        """Leaves out of the speed what went on until now: compilation, evaluation, checkpoints."""
        self._since, self._timed = time.monotonic(), 0

    def record(self, step: int) -> tuple[dict[str, Any], int, int | None]:
        """Waits for the steps since the last record, up to ``step``.

        Returns:
            (their means, as `RunLog.training` takes them; the longest row of skipped steps that reached into them; the
            first one that spiked).
        """
        records, self._pending = jax.device_get(self._pending), []
        waited, self.waited = self.waited / len(records), 0.0
        seconds = time.monotonic() - self._since
        if self._timed:
            seconds /= self._timed
        else:  # the very first step, compilation included
            seconds = time.monotonic() - self._started
        means = {name: np.mean([record[name] for record in records], axis=0).tolist() for name in records[0]}
        means.pop("bad_steps")
        if "load" in means:
            means["dead_memories"] = dead_memories(np.asarray(means["load"], np.float32)).sum(-1).tolist()
        first = step - len(records) + 1
        spiked = [number for number, record in enumerate(records, first) if record.get("spiked")]
        means.pop("spiked", None)
        totals = {name: int(records[-1][name]) for name in ("bad_total", "spikes") if name in means}
        speed = {"seconds_per_step": seconds, "data_wait": waited}
        if "tokens" in means:
            speed["tokens_per_second"] = means["tokens"] / seconds
        self.restart_clock()
        skipped = max(int(record["bad_steps"]) for record in records)
        return {"step": step, **means, **totals, **speed}, skipped, spiked[0] if spiked else None
