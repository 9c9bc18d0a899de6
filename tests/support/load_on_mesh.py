"""Run by itself on eight fake devices with a saved model: prints what agrees with the model on one device."""

import sys

import jax
import numpy as np
from flax import nnx
from goldens.read import parameters_by_name
from jax.sharding import AxisType

from mom_jax import load_pretrained, save_pretrained
from mom_jax.errors import InputError


def main(folder: str, out: str) -> None:
    """Loads and saves on a mesh, and refuses one that does not divide the model."""
    want = parameters_by_name(nnx.state(load_pretrained(folder)))
    assert all(len(values.devices()) == 1 for values in want.values())
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        model = load_pretrained(folder)
        got = parameters_by_name(nnx.state(model))
        for name, values in want.items():
            assert len(got[name].devices()) == 8 and np.array_equal(got[name], values), name
        print("agree: values")
        parts = {name: values.addressable_shards[0].data.size / values.size for name, values in got.items()}
        assert parts["layers.attn.rule.k_proj"] == parts["embeddings"] == parts["lm_head"] == 1 / 4
        assert parts["layers.attn.rule.k_conv1d"] == 1 / 2 and parts["norm.weight"] == 1
        print("agree: parts")
        logits = jax.jit(lambda m, ids: m(ids).logits)(model, np.arange(16).reshape(8, 2))
        assert np.isfinite(logits).all()
        print("agree: runs")
        save_pretrained(model, out)
        print("agree: saved")
    with jax.set_mesh(jax.make_mesh((1, 1, 8), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)):
        try:
            load_pretrained(folder)
        except InputError as error:
            assert "does not divide parameter" in str(error)
            print("agree: refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
