"""Models of float64 parameters under ``jax_enable_x64``, as for checks of gradients: nothing is rounded."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layers.test_rules import OPTIONS
from support.cases import some
from support.parameters import random_model

from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.attention_config import AttentionConfig
from mom_jax.models.config import MEMORY_RULES, MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.router_statistics import router_statistics
from mom_jax.ops.routing import auxiliary_loss, router_z_loss

IDS = np.random.default_rng(0).integers(0, 32, (1, 9)).astype(np.int32)
MASK = jnp.ones((1, 9), jnp.int32).at[0, :2].set(0)
NUMBERS = np.array([[0] * 4 + [1] * 5])
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 8, "expand_v": 1.5,
         "intermediate_size": 24}  # fmt: skip
MODELS = {
    "hybrid": {"num_hidden_layers": 2, "layer_pattern": "1m1a", "tie_word_embeddings": True,
               "attn": AttentionConfig(num_heads=2, num_kv_heads=1, window_size=3, rotary_fraction=0.5, qk_norm=True,
                                       output_gate=True),
               "router_per_head": True, "learned_initial_state": True},
    "sigmoids": {"router_scores": "sigmoid", "router_balance": "loss_free", "projection_rank": 2, "decay_spread": 4.0,
                 "reference_conv_leak": True, "router_reads": "apart"},
}  # fmt: skip


def in_float64(module):
    """A module's graph and its parameters."""
    graph, params = nnx.split(module)
    return graph, jax.tree.map(lambda x: np.asarray(np.random.default_rng(0).normal(0, 0.3, x.shape)), params)


@functools.cache
def model_of(case):
    """A model: its graph and its parameters."""
    return in_float64(random_model(MoMConfig(**SIZES | MODELS[case])))


def loss(graph, params):
    """All losses together, and what is told of a step."""
    model = nnx.merge(graph, params).rounded()
    hidden, router, _ = model.hidden_states(IDS, MASK, NUMBERS)
    total = model.cross_entropy(hidden, IDS, 1e-3)[0] + auxiliary_loss(router, MASK) + router_z_loss(router, MASK)
    return total, (router_statistics(router, MASK), model.token_nats(hidden, IDS))


def decoded(graph, params):
    """Logits of a prompt and of the token after it."""
    model = nnx.merge(graph, params)
    first = model(IDS, MASK, NUMBERS, model.init_cache(1))
    return first.logits, model(IDS[:, :1], cache=first.cache)


def roundings(function, *arguments):
    """The equations of a program that give less than float64, with their places."""
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of a scatter that puts int64 into int32
        program = jax.make_jaxpr(function)(*arguments)
    lines = program.pretty_print(source_info=True, use_color=False).splitlines()
    return [line.strip() for line in lines if ":f32[" in line or ":bf16[" in line or ":f16[" in line]


@pytest.mark.parametrize("rule", some(MEMORY_RULES, ("gated_deltanet", "kda", "linear_attention", "rwkv7", "titans")))
def test_no_equation_of_a_layer_rounds(rule):
    """Neither forward nor backward; of one memory, which traces sooner."""
    config = MoMConfig(**SIZES | {"memory_rule": rule, "mixture": False} | OPTIONS.get(rule, {}))
    graph, params = in_float64(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))))

    def read(params, x):
        layer: MemoryMixer = nnx.merge(graph, params)
        return layer(x, segment_ids=NUMBERS).y.sum()

    assert not roundings(jax.grad(read), params, np.ones((1, 9, SIZES["hidden_size"])))


@pytest.mark.filterwarnings("ignore:reference_conv_leak")
@pytest.mark.parametrize("case", MODELS)
def test_no_equation_of_a_model_rounds(case):
    """Nor with a cache."""
    graph, params = model_of(case)
    assert not roundings(jax.grad(functools.partial(loss, graph), has_aux=True), params)
    assert not roundings(functools.partial(decoded, graph), params)


def test_gradients_agree_with_central_differences():
    """In a direction through all parameters."""
    graph, params = model_of("hybrid")
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(lambda params: loss(graph, params)[0]))
        moved = lambda step: jax.tree.map(lambda x, d: x + step * d, params, direction)  # noqa: E731
        above, below = (np.asarray(run(moved(step))[0]) for step in (1e-6, -1e-6))
        gradients = run(params)[1]
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
    np.testing.assert_allclose((above - below) / 2e-6, slope, rtol=1e-6)
