"""Loading straight onto a mesh, and saving from one: a process of its own with eight fake devices."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_eight_devices(saved, tmp_path):
    """Every device gets its part; what is saved from there equals the file byte for byte."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    script = [sys.executable, str(TESTS / "support/load_on_mesh.py"), str(saved), str(tmp_path / "out")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    said = [line.removeprefix("agree: ") for line in done.stdout.splitlines()]
    assert said == ["values", "parts", "runs", "saved", "refused"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
