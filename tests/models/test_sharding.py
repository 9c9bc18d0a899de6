"""Eight devices compute what one computes: a process of its own, since the number of devices is fixed at start-up."""

import pytest
from support.eight_devices import LAYERS
from support.processes import TESTS, on_eight_fake_devices


@pytest.fixture(scope="module")
def checked():
    """The lines of the script."""
    return on_eight_fake_devices(TESTS / "support/eight_devices.py").splitlines()


RUNS = ["loss, logits, gradients", "what is exchanged", "cached pieces", "three rows", "parameters are split", "hybrid"]


@pytest.mark.parametrize("what", [*RUNS, *LAYERS])
def test_eight_devices_equal_one(checked, what):
    """Within 1e-5 of the largest value: a batch that divides or not, cached pieces, other kinds of layers."""
    assert f"agree: {what}" in checked
