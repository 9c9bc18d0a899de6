"""The MoM layer alone against the reference's layer with its own defaults (8 memories, V = 2 K, no shared memory)."""

import jax
import jax.numpy as jnp
from flax import nnx
from goldens.read import assign, load, mixer_parameters, parameters_by_name, under
from support.compare import assert_close

from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MoMConfig


def test_the_layer_and_its_gradients():
    """Outputs and router logits within 1e-5 of their largest value; every gradient of sum(y * dy) that is stored within
    1e-4 of its own (these are not rounded)."""
    stored = load("layer_defaults")
    with nnx.use_eager_sharding(False):
        sizes = {"num_heads": 2, "head_k_dim": 16, "head_v_dim": 32, "num_memories": 8, "shared": False}
        layer = MemoryMixer(32, **sizes, options={"norm_eps": 1e-5}, rngs=nnx.Rngs(0))
    config = MoMConfig(num_hidden_layers=1, num_memories=8, shared_mem=False)
    assign(layer, mixer_parameters(layer, config, under(stored, "sd")))
    graph, params = nnx.split(layer)

    @jax.jit
    def run(params, x, dy):
        def mixed(params, x):
            y, router, _ = nnx.merge(graph, params)(x)
            return y, router.logits

        (y, logits), pull = jax.vjp(mixed, params, x)
        return y, logits, pull((dy, jnp.zeros_like(logits)))

    y, logits, (dparams, dx) = run(params, stored["in/x"], stored["in/dy"])
    assert_close((y, logits.reshape(-1, 8)), (stored["out/y"], stored["out/router_logits"].reshape(-1, 8)), 1e-5)
    dparams = parameters_by_name(dparams)
    ours = {
        "x": dx,
        "A_log": dparams["rule.A_log"],
        "dt_bias": dparams["rule.dt_bias"],
        "gate.weight": dparams["router.weight"].T,
        "o_norm.weight": dparams["output.norm"],
        **{f"{n}_conv1d.weight": dparams[f"rule.{n}_conv1d"][:, None] for n in "qkv"},
    }
    want = under(stored, "grad")
    assert set(ours) == set(want)
    assert_close(ours, want, 1e-4)
