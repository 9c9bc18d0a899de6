"""What a device does of what it could: model FLOPs utilisation, and the memory that was in use."""

from typing import Any

import jax

from mom_jax.models.accounting import account, total
from mom_jax.peaks import peak_flops
from mom_jax.training.config import TrainConfig


class Speed:
    """Adds to records what is known of the devices.

    Args:
        config: of the run.
        devices: all of its devices, of one kind.
    """

    def __init__(self, config: TrainConfig, devices: list[Any]):
        self._device = next(x for x in devices if x.process_index == jax.process_index())  # others tell nothing here
        peak = peak_flops(self._device.device_kind)
        self._tokens_at_peak: float | None = None  # a second
        if peak is not None:
            costs = total(account(config.model, config.data.sequence_length))
            self._tokens_at_peak = peak * len(devices) / (costs.forward + costs.backward)

    def of(self, record: dict[str, Any]) -> dict[str, float]:
        """``mfu`` and ``memory_bytes``, each where it is known.

        The first is the model's own FLOPs (recomputed ones do not count) as a share of the devices' peak, the second
        the most that was in use on a device so far.
        """
        known = {}
        if self._tokens_at_peak is not None and "tokens_per_second" in record:
            known["mfu"] = record["tokens_per_second"] / self._tokens_at_peak
        stats = self._device.memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            known["memory_bytes"] = stats["peak_bytes_in_use"]
        return known
