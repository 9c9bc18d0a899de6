"""Checkpoints of ours in the PyTorch library, and its checkpoints here, with the library installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.beside_pytorch import CONFIGS

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What the script found, by kind of model. It changes how Triton starts, so it is a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = [sys.executable, str(TESTS / "support/beside_pytorch.py"), str(tmp_path_factory.mktemp("models"))]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("model"): line for line in lines}


@pytest.mark.parametrize("model", CONFIGS)
def test_both_ways(model, checked):
    """Our folder gives the same logits there; its folders give our parameters back, bit for bit."""
    found = checked[model]
    assert found.pop("logits, relative") < 1e-5
    assert all(value is True for value in found.values()), found
