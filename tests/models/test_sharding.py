"""Sixteen devices compute what one computes: a process of its own, since the number of devices is fixed at start-up."""

import pytest
from support.processes import TESTS, on_fake_devices
from support.sixteen_devices import LAYERS, RULES


@pytest.fixture(scope="module")
def checked():
    """The lines of the script."""
    return on_fake_devices(16, TESTS / "support/sixteen_devices.py").splitlines()


RUNS = ["parameters are split", "loss, logits, gradients", "what is exchanged", "cached pieces", "hybrid, three rows"]


@pytest.mark.parametrize("what", [*RUNS, *(f"{rule}, trained" for rule in RULES), *LAYERS])
def test_sixteen_devices_equal_one(checked, what):
    """Within 1e-5 of the largest value: a batch that divides or not, cached pieces, every recurrence that is split."""
    assert f"agree: {what}" in checked
