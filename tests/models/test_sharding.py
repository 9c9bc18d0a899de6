"""Eight devices compute what one computes: a process of its own, since the number of devices is fixed at start-up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def run_script(name, **environment):
    """Output of a script of tests/support; its own message on failure."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **environment}
    script = TESTS / "support" / name
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def checked():
    """The lines of the script."""
    flags = "--xla_force_host_platform_device_count=8"
    return run_script("eight_devices.py", XLA_FLAGS=flags).splitlines()


RUNS = ["loss, logits, gradients", "cached pieces", "three rows", "parameters are split"]


@pytest.mark.parametrize("what", [*RUNS, "hybrid", "retnet", "lightning", "gla, one memory"])
def test_eight_devices_equal_one(checked, what):
    """Within 1e-5 of the largest value: a batch that divides or not, cached pieces, other kinds of layers."""
    assert f"agree: {what}" in checked
