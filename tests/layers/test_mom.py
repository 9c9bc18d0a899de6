"""The packed MoM layer against the dense definition, and what must not change its output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens.read import parameters_by_name
from support.cases import some
from support.compare import assert_close
from support.mixer import choose, dense_mixer, sequences
from support.parameters import random_mixer

CASES = {
    "shared": ({}, 11),
    "routed only, no gate, no convolution": (
        {"shared_mem": False, "use_output_gate": False, "use_short_conv": False},
        11,
    ),
    "one projection, top-1": ({"single_kv_proj": True, "topk": 1}, 11),
    "all memories, one tap, one token": ({"topk": 4, "conv_size": 1}, 1),
    "a single memory": ({"mixture": False}, 11),
    "deltanet": ({"memory_rule": "deltanet", "allow_neg_eigval": True}, 11),
    "sizes of a model": ({"hidden_size": 32, "num_heads": 1, "head_dim": 64, "expand_v": 1.0}, 70),
}


def random_input(batch, time, hidden, seed=0):
    """Hidden states and cotangents."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(batch, time, hidden)), jnp.float32) for _ in range(2))


def differentiate(function, params, x, dy):
    """Outputs, and gradients of parameters and inputs."""
    y, pull = jax.vjp(function, params, x)
    return y, pull(dy)


@pytest.mark.parametrize("case", some(CASES, ("shared", "one projection, top-1", "deltanet")))
def test_equals_the_dense_definition(case):
    """Values and the gradients of x and of every parameter, with holes in the mask and documents."""
    options, time = CASES[case]
    layer = random_mixer(0.35, **options)
    graph, params = nnx.split(layer)
    x, dy = random_input(2, time, layer.rule.q_proj.weight.shape[0])
    rng = np.random.default_rng(5)
    mask = (rng.random((2, time)) < 0.8).astype(np.int32)
    mask[:, 0] = 1
    documents = np.sort(rng.integers(0, 3, (2, time)), -1).astype(np.int32)
    dy = dy * mask[..., None]

    def packed(params, x):
        return nnx.merge(graph, params)(x, jnp.asarray(mask), jnp.asarray(documents))[0]

    y, (dparams, dx) = jax.jit(functools.partial(differentiate, packed))(params, x, dy)
    if layer.num_memories is None:
        memories = np.zeros((2, time, 1), int)
    else:
        memories = choose(layer.router.weight[...], x, layer.top_k)
    found = sequences(memories, layer.memories - layer.shared, layer.shared, mask, documents)
    by_name = {name: np.asarray(value, np.float64) for name, value in parameters_by_name(params).items()}
    with jax.enable_x64(True):
        heads = layer.rule.sizes.num_heads
        max_beta = 2.0 if layer.rule.options.allow_neg_eigval else 1.0
        options = {"heads": heads, "shared": layer.shared, "max_beta": max_beta}
        dense = functools.partial(dense_mixer, memories=memories, found=found, eps=layer.output.norm_eps, **options)
        run = jax.jit(functools.partial(differentiate, dense))
        want, (dp, dx_want) = jax.device_get(run(by_name, np.asarray(x, np.float64), np.asarray(dy, np.float64)))
    assert not np.asarray(y)[mask == 0].any()
    assert_close((y, dx), (want * mask[..., None], dx_want), 2e-5)
    # an eighth of the tolerance of the reference's gradients: sums over all tokens cancel
    assert_close(parameters_by_name(dparams), dp, 1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def run():
    """The compiled layer: (x, mask, documents) to the output."""
    graph, params = nnx.split(random_mixer(0.35))
    return jax.jit(lambda x, mask, documents: nnx.merge(graph, params)(x, mask, documents)[0])


def test_a_row_of_padding(run):
    """A row without a real token gives zeros and leaves the other row alone."""
    x, _ = random_input(2, 12, 16)
    mask = np.ones((2, 12), np.int32)
    y = run(x, mask, None)
    mask[0] = 0
    masked = run(x, mask, None)
    assert not np.asarray(masked[0]).any()
    assert_close(masked[1], y[1], 1e-6)


def test_vmap(run):
    """A leading axis of inputs by vmap."""
    graph, params = nnx.split(random_mixer(0.35))
    x = jnp.stack(random_input(2, 12, 16))
    mapped = jax.jit(jax.vmap(lambda x: nnx.merge(graph, params)(x)[0]))(x)
    assert_close(mapped, jnp.stack([run(one, None, None) for one in x]), 1e-5)
