"""The whole comparison beside the PyTorch reference, each in its own process, since Triton loads once."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mom_jax import MoMConfig, save_pretrained
from mom_jax.models.config import AttentionConfig
from mom_jax.models.structure import model_parts

pytestmark = pytest.mark.parity
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}
HYBRID = {"num_hidden_layers": 3, "attn": AttentionConfig(layers=(1,), num_heads=2, num_kv_heads=1, window_size=9)}


def saved_model(folder: Path, **options) -> Path:
    """A published model whose random parameters are of the size that trained ones have."""
    parts, rng = model_parts(MoMConfig(**SMALL, **options)), np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(0, 0.2, leaf.shape)
        return np.asarray(values + ("norm" in jax.tree_util.keystr(path)), np.float32)

    save_pretrained(parts.merge(jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(parts.abstract))), folder)
    return folder


def compare(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess, dict]:
    """The finished command and its compare.json."""
    out = folder.with_name("out")
    command = [sys.executable, "-m", "mom_jax", "compare", "--reference", str(folder), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads((out / "compare.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"num_hidden_layers": 1, "shared_mem": False, "tie_word_embeddings": True}, ["--kernels", "interpreter"]),
        (HYBRID, ["--kernels", "naive"]),
    ],
    ids=["interpreted kernels", "hybrid, naive operators"],
)
def test_float32_agrees(tmp_path, options, arguments):
    folder = saved_model(tmp_path / "model", **options)
    done, record = compare(folder, *arguments, "--tokens", "2x70", "--new-tokens", "16")
    assert done.returncode == 0, done.stdout
    assert record["ok"] and len(record["layers"]) == options["num_hidden_layers"]
    assert record["rows"] == {"compared": 2, "of": 2}
    assert record["generation"]["equal"] == record["generation"]["total"] == 32


def test_bfloat16_is_no_worse(tmp_path):
    folder = saved_model(tmp_path / "model", num_hidden_layers=2)
    done, record = compare(folder, "--dtype", "bfloat16", "--tokens", "4x96", "--draws", "3")
    assert done.returncode == 0, done.stdout
    assert record["ok"] and record["draws"] == 3
    assert any(line["judged"] and line["reference"] > 1e-3 for line in record["lines"])


def test_a_wrong_tolerance_is_status_1(tmp_path):
    folder = saved_model(tmp_path / "model", num_hidden_layers=1)
    done, record = compare(folder, "--tolerance", "1e-12", "--new-tokens", "0", "--tokens", "1x16")
    assert done.returncode == 1 and not record["ok"] and record["generation"] is None
    assert "TOO LARGE" in done.stdout
