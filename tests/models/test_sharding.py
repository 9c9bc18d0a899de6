"""Simulated devices compute what one computes: a process of its own, since their number is fixed at start-up."""

import pytest
from support.meshes import EIGHT
from support.processes import TESTS, on_fake_devices
from support.sixteen_devices import LAYERS


@pytest.fixture(scope="module")
def checked():
    """The lines of the script."""
    return on_fake_devices(16, TESTS / "support/sixteen_devices.py").splitlines()


@pytest.mark.parametrize("sizes", EIGHT, ids=str)
def test_eight_devices_equal_one(checked, sizes):
    """On every mesh: loss, router logits and all gradients, of packed documents and padding."""
    assert f"agree: {','.join(map(str, sizes))}" in checked


RUNS = ["parameters are split", "loss, logits, gradients", "what is exchanged", "hybrid, three rows, in pieces"]


@pytest.mark.parametrize("what", [*RUNS, *LAYERS])
def test_sixteen_devices_equal_one(checked, what):
    """Within 1e-5 of the largest value: a batch that divides or not, cached pieces, every recurrence that is split."""
    assert f"agree: {what}" in checked


def test_all_meshes_of_eight():
    """Four axes have twenty."""
    assert len(EIGHT) == 20
