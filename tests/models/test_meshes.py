"""Every mesh of eight devices computes what one device computes, for a rule of each recurrence that may be split.

They take minutes, so they run when they are asked for; the suite's own meshes are in `test_sharding.py`.
"""

import pytest
from support.meshes import EIGHT
from support.processes import TESTS, on_fake_devices

RULES = ["gated_deltanet", "mamba2", "gla", "kda"]  # delta rule, decay of a head, of channels, with rank one besides


@pytest.mark.programs
@pytest.mark.parametrize("rule", RULES)
def test_all_meshes(rule):
    """All twenty, with packed documents and padding."""
    lines = on_fake_devices(8, TESTS / "support/all_meshes.py", rule).splitlines()
    assert len(EIGHT) == 20
    assert lines == [f"agree: {','.join(map(str, sizes))}" for sizes in EIGHT]
