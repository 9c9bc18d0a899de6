"""Checkpoints of ours in the PyTorch library, and its checkpoints here, with the library installed."""

import json
import os

import jax
import numpy as np
import pytest
from flax import nnx
from support.beside_pytorch import CONFIGS
from support.processes import TESTS, output_of

from mom_jax import MoMConfig, save_pretrained
from mom_jax.cli.main import main
from mom_jax.models.structure import build_model

pytestmark = pytest.mark.parity


def lines_of(script: str, *arguments: str) -> list[dict]:
    """The lines of JSON that a script of tests/support prints. It changes how Triton starts, so it is a process."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # without -P support.tokenizers is found instead of tokenizers
    said = output_of(["-P", str(TESTS / "support" / script), *arguments], environment)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What was found, by kind of model."""
    return {line.pop("model"): line for line in lines_of("beside_pytorch.py", str(tmp_path_factory.mktemp("models")))}


@pytest.mark.parametrize("model", CONFIGS)
def test_both_ways(model, checked):
    """Our folder gives the same logits there; its folders give our parameters back, bit for bit."""
    found = checked[model]
    limit = 3e-5 if model == "one memory, MesaNet" else 1e-5  # a system of equations is solved for every read
    assert found.pop("logits, relative") < limit
    assert all(value is True for value in found.values()), found


def test_layers_that_have_no_model_here():
    """RWKV6 and RWKV7: outputs and gradients of the layers of that name, with the same parameters."""
    found = lines_of("layers_beside_pytorch.py")
    assert [line["rule"] for line in found] == ["rwkv6", "rwkv7"]
    assert all(line["outputs"] < 1e-5 and line["gradients"] < 2e-5 for line in found), found


LOAD = """
import json, sys
import fla
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {"class": type(model).__name__, "ids": tokenizer(sys.argv[2], add_special_tokens=False).input_ids}
found["text"] = tokenizer.decode(found["ids"])
found["sum"] = sum(float(p.double().abs().sum()) for p in model.parameters())
print(json.dumps(found))
"""


def test_what_is_pushed_is_a_model_like_any_other_there(tmp_path):
    """The automatic classes find model and tokenizer in the folder of ``mom-jax push``."""
    made = build_model(MoMConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, num_heads=2, head_dim=8), 0)
    save_pretrained(made, tmp_path / "saved")
    assert main(["convert", str(tmp_path / "saved"), str(tmp_path / "run"), "--tokenizer", "bytes"]) == 0
    assert main(["push", str(tmp_path / "run"), "me/tiny", "--out", str(tmp_path / "out")]) == 0
    said = output_of(["-c", LOAD, str(tmp_path / "out"), "schön 中\n"], dict(os.environ))
    found = json.loads(said.splitlines()[-1])
    assert found["class"] == "MomForCausalLM" and found["text"] == "schön 中\n"
    assert found["ids"] == list("schön 中\n".encode())
    ours = sum(float(np.abs(np.asarray(p, np.float64)).sum()) for p in jax.tree.leaves(nnx.state(made)))
    assert abs(found["sum"] - ours) < 1e-6 * ours
