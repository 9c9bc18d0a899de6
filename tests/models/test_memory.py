"""What a program holds besides its inputs: XLA copies what is reshaped as a whole on the way into a loop."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM

SIZES = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 8, "num_heads": 2, "head_dim": 32}
ATTENTION = AttentionConfig(layers=(3, 7), num_heads=2, window_size=16)


def taken_apart(**options):
    """Structure, shapes of the parameters, and their bytes."""
    config = MoMConfig(**SIZES | options)
    graph, params = nnx.split(nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0))))
    return graph, params, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def temporary_bytes(function, *arguments, donate=()):
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "options, batch",
    [({"attn": ATTENTION}, 1), ({"attn": ATTENTION}, 4), ({"hidden_size": 16, "head_dim": 64}, 1)],
    ids=["hybrid", "hybrid of four rows", "states as large as parameters"],
)
def test_a_step_of_decoding_copies_one_layer_at_a_time(options, batch):
    """Less than half of eight layers' parameters; all of them, or all states, when they are reshaped."""
    graph, params, whole = taken_apart(**options)

    def step(params, ids, cache):
        out = nnx.merge(graph, params)(ids, cache=cache)
        return out.logits, out.cache

    cache = jax.eval_shape(lambda: MoMForCausalLM(MoMConfig(**SIZES | options), rngs=nnx.Rngs(0)).init_cache(batch))
    ids = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    assert temporary_bytes(step, params, ids, cache, donate=2) < whole / 2


def test_gradients_take_no_copy_of_the_parameters():
    """Whole rematerialisation of a short row; twice the parameters when they are reshaped."""
    graph, params, whole = taken_apart()

    def loss(params, ids):
        return nnx.merge(graph, params).hidden_states(ids, remat="full")[0].sum()

    assert temporary_bytes(jax.grad(loss), params, jax.ShapeDtypeStruct((1, 8), jnp.int32)) < whole / 2
