"""Utilisation of devices that are not here."""

from types import SimpleNamespace

import pytest

from mom_jax.models.accounting import account, total
from mom_jax.peaks import peak_flops
from mom_jax.training.config import TrainConfig
from mom_jax.training.speed import Speed


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_devices_names(kind, peak):
    assert peak_flops(kind) == peak


def test_utilisation_and_memory_where_they_are_known(make_config):
    config: TrainConfig = make_config()
    costs = total(account(config.model, config.data.sequence_length))
    device = SimpleNamespace(process_index=0, device_kind="TPU v5 lite", memory_stats=lambda: {"peak_bytes_in_use": 7})
    tokens = 0.4 * 2 * 197e12 / (costs.forward + costs.backward)
    known = Speed(config, [device, device]).of({"tokens_per_second": tokens})
    assert known == {"mfu": pytest.approx(0.4), "memory_bytes": 7}
    assert Speed(config, [SimpleNamespace(process_index=0, device_kind="cpu", memory_stats=lambda: None)]).of({}) == {}
