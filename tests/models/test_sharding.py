"""Simulated devices compute what one computes: a process of its own, since their number is fixed at start-up."""

import pytest
from support.cases import some
from support.meshes import EIGHT, MESHES
from support.processes import TESTS, on_fake_devices
from support.sixteen_devices import RUNS

NAMES = {sizes: ",".join(map(str, sizes)) for sizes in EIGHT}
CASES = [(part, what) for part, runs in RUNS.items() for what in (*map(NAMES.get, MESHES[part]), *runs)]
FIRST = [case for case in CASES if case[0] == "some"]
RULES = ["gated_deltanet", "mamba2", "gla", "kda"]  # delta rule, decay of a head, of channels, with rank one besides


@pytest.fixture(scope="module")
def agreeing(request):
    """The lines of a part of the script."""
    return on_fake_devices(16, TESTS / "support/sixteen_devices.py", request.param).splitlines()


# the scope: else pytest runs the script for each case
@pytest.mark.parametrize("agreeing, what", some(CASES, FIRST), indirect=["agreeing"], scope="module")
def test_devices_equal_one(agreeing, what):
    """Loss, router logits and all gradients of packed documents and padding on meshes of eight devices, named by their
    sizes; then, on sixteen, also a batch that does not divide, cached pieces, and every recurrence that is split."""
    assert f"agree: {what}" in agreeing


@pytest.mark.programs
@pytest.mark.parametrize("agreeing", RULES, indirect=True)
def test_all_meshes(agreeing):
    """Of eight devices, for a rule of each recurrence that may be split; they take minutes."""
    assert agreeing == [f"agree: {sizes}" for sizes in NAMES.values()]


def test_all_meshes_of_eight():
    """Four axes have twenty."""
    assert len(EIGHT) == 20
