"""Loading straight onto a mesh, and saving from one: a process of its own with eight fake devices."""

import pytest
from support.processes import TESTS, on_fake_devices


@pytest.mark.exhaustive
def test_eight_devices(saved, tmp_path):
    """Every device gets its part; what is saved from there equals the file byte for byte."""
    output = on_fake_devices(8, TESTS / "support/load_on_mesh.py", saved, tmp_path / "out")
    said = [line.removeprefix("agree: ") for line in output.splitlines()]
    assert said == ["values", "parts", "runs", "saved", "refused"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
