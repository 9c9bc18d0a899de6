"""The older layout ``mom_gated_deltanet``: fused gate and up projections, gate first; an unused D in each layer."""

import json

import numpy as np
import pytest
from flax import nnx
from goldens.read import parameters_by_name
from safetensors.numpy import load_file, save_file

from mom_jax import MoMConfig, load_pretrained
from mom_jax.errors import InputError

# Names of its configuration's first and second version, and what fields left out of it mean.
OLD_NAMES = [
    {"num_memories": "num_experts", "single_kv_proj": "single_expert", "use_output_gate": "use_gate"},
    {"use_output_gate": "use_gate"},
]


def to_old(folder, names, norm="mlp_norm.weight"):
    """Rewrites a saved model in the older layout."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {names.get(name, name): value for name, value in fields.items()} | {"model_type": "mom_gated_deltanet"}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        gate, up = (tensors.pop(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up"))
        tensors[f"{prefix}mlp.gate_proj.weight"] = np.concatenate([gate, up])
        tensors[f"{prefix}{norm}"] = tensors.pop(f"{prefix}mlp_norm.weight")
        tensors[f"{prefix}attn.D"] = np.ones(fields["num_heads"], np.float32)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("names", OLD_NAMES, ids=["num_experts", "num_memories"])
@pytest.mark.parametrize("norm", ["mlp_norm.weight", "mlp.norm.weight"])
def test_same_model(names, norm, saved, make_model):
    """Every parameter arrives, wherever the norm of the MLP lies."""
    to_old(saved, names, norm)
    model, want = load_pretrained(saved), make_model()
    assert model.config == want.config
    got, want = (parameters_by_name(nnx.state(m)) for m in (model, want))
    for name, values in want.items():
        assert np.array_equal(got[name], values), name


def test_its_own_defaults(saved):
    """A field that is missing has the older configuration's default, which differs from the newer one's."""
    to_old(saved, OLD_NAMES[0])
    fields = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    for name in ("num_experts", "expand_v", "shared_mem", "num_heads", "num_hidden_layers"):
        del fields[name]
    config = MoMConfig.from_dict(fields)
    assert (config.num_memories, config.expand_v, config.shared_mem) == (8, 2, False)
    assert (config.num_heads, config.num_hidden_layers) == (6, 21)


def test_missing_projection(saved):
    """The fused tensor is named once, in its own shape."""
    to_old(saved, OLD_NAMES[0])
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match=r"tensors=1 of \d+.*model\.layers\.1\.mlp\.gate_proj\.weight \[48, 16\] is m"):
        load_pretrained(saved)
