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


def lines_of(script: str, *arguments: str) -> list[dict]:
    """The lines of JSON that a script of tests/support prints. It changes how Triton starts, so it is a process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(TESTS / "support" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What was found, by kind of model."""
    return {line.pop("model"): line for line in lines_of("beside_pytorch.py", str(tmp_path_factory.mktemp("models")))}


@pytest.mark.parametrize("model", CONFIGS)
def test_both_ways(model, checked):
    """Our folder gives the same logits there; its folders give our parameters back, bit for bit."""
    found = checked[model]
    assert found.pop("logits, relative") < 1e-5
    assert all(value is True for value in found.values()), found


def test_layers_that_have_no_model_here():
    """RWKV6 and RWKV7: outputs and gradients of the layers of that name, with the same parameters."""
    found = lines_of("layers_beside_pytorch.py")
    assert [line["rule"] for line in found] == ["rwkv6", "rwkv7"]
    assert all(line["outputs"] < 1e-5 and line["gradients"] < 2e-5 for line in found), found
