"""Simulated devices compute what one computes: a process of its own, since their number is fixed at start-up."""

import pytest
from support.meshes import EIGHT, MESHES
from support.processes import TESTS, on_fake_devices
from support.sixteen_devices import RUNS


@pytest.fixture(scope="module")
def checked():
    """The lines of the script."""
    return on_fake_devices(16, TESTS / "support/sixteen_devices.py", "some").splitlines()


@pytest.fixture(scope="module")
def rest():
    """Those of what it leaves."""
    return on_fake_devices(16, TESTS / "support/sixteen_devices.py", "rest").splitlines()


@pytest.mark.parametrize("sizes", MESHES["some"], ids=str)
def test_eight_devices_equal_one(checked, sizes):
    """Loss, router logits and all gradients, of packed documents and padding."""
    assert f"agree: {','.join(map(str, sizes))}" in checked


@pytest.mark.exhaustive
@pytest.mark.parametrize("sizes", MESHES["rest"], ids=str)
def test_eight_devices_of_other_sizes(rest, sizes):
    """The same on the other meshes."""
    assert f"agree: {','.join(map(str, sizes))}" in rest


@pytest.mark.parametrize("what", RUNS["some"])
def test_sixteen_devices_equal_one(checked, what):
    """Within 1e-5 of the largest value."""
    assert f"agree: {what}" in checked


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", RUNS["rest"])
def test_sixteen_devices_with_other_layers(rest, what):
    """A batch that does not divide, cached pieces, every recurrence that is split."""
    assert f"agree: {what}" in rest


def test_all_meshes_of_eight():
    """Four axes have twenty."""
    assert len(EIGHT) == 20
