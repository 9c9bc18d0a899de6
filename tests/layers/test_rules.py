"""Every memory rule: a mixture is its memories one by one, any split gives the full pass, nothing leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compare import assert_close
from support.dependence import dependence
from support.mixer import choose
from support.parameters import randomised

from mom_jax.layers.mom import MoM
from mom_jax.models.config import MEMORY_RULES, MoMConfig
from mom_jax.models.mixers import make_mixer

ROWS, TIME, D = 2, 11, 16
OPTIONS = {
    "linear_attention": {"feature_map": "elu", "norm_feature_map": True},
    "gla": {"gate_low_rank_dim": 4, "gate_logit_normalizer": 2},
    "deltanet": {"allow_neg_eigval": True},
    "gsa": {"num_slots": 6, "gate_logit_normalizer": 2},
    "rwkv6": {"proj_low_rank_dim": 3, "decay_low_rank_dim": 4},
    "rwkv7": {"gate_low_rank_dim": 5, "decay_low_rank_dim": 4, "a_low_rank_dim": 3},
    "ttt": {"expand_v": 1.0, "mini_batch_size": 4},
    "titans": {"mini_batch_size": 4},
}


@functools.cache
def layer_of(rule: str, mixture: bool = True) -> MoM:
    """A layer of the rule with parameters that make every part matter; a mixture's are the same at every call."""
    sizes = {"hidden_size": D, "num_heads": 2, "head_dim": 8, "expand_v": 1.5, "num_hidden_layers": 3}
    config = MoMConfig(**sizes | OPTIONS.get(rule, {}), memory_rule=rule, mixture=mixture)
    layer = randomised(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))), 0.4)
    assert isinstance(layer, MoM)
    return layer


@pytest.fixture(scope="module")
def x():
    """Hidden states."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, TIME, D)), jnp.float32)


def memory_of(layer: MoM, single: MoM, memory: int) -> MoM:
    """One memory of a mixture as a layer of its own that returns its reads."""
    graph, params = nnx.split(single)
    values, own = nnx.to_pure_dict(params), nnx.to_pure_dict(nnx.state(layer.rule))
    for name in values["rule"]:
        values["rule"][name] = own[name][memory : memory + 1] if name in layer.rule.per_memory else own[name]
    nnx.replace_by_pure_dict(params, values)
    return nnx.merge(graph, params)


@pytest.mark.parametrize("rule", [rule for rule in MEMORY_RULES if rule != "retnet"])
def test_a_mixture_is_its_memories_one_by_one(rule, x):
    """Reads of each memory from a layer that holds it alone and sees its tokens, mixed by the router's weights.

    RetNet counts positions by the row's time, which such a layer does not see: it has its own test.
    """
    layer, single = layer_of(rule), layer_of(rule, mixture=False)
    memories = choose(layer.router.weight[...], x, layer.top_k)
    scores = np.take_along_axis(np.asarray(jax.nn.softmax(x @ layer.router.weight[...], -1)), memories, -1)
    weights = scores / scores.sum(-1, keepdims=True)
    total = 0.0
    read = jax.jit(lambda one, x, mask: one.read(x, mask)[0])
    for memory in range(layer.memories):
        chosen = memories == memory
        mask = np.ones((ROWS, TIME)) if memory == layer.num_memories else chosen.any(-1)
        weight = mask if memory == layer.num_memories else (weights * chosen).sum(-1)
        reads = read(memory_of(layer, single, memory), x, jnp.asarray(mask, jnp.int32))
        total = total + weight[..., None, None] * reads
    assert_close(jax.jit(lambda layer, x: layer.read(x)[0])(layer, x), total, 1e-5)


def test_retnet_by_definition(x):
    """Decay for each token of the memory, rotation for each token of the row."""
    layer = layer_of("retnet")
    rule = layer.rule
    memories = choose(layer.router.weight[...], x, layer.top_k)
    scores = np.take_along_axis(np.asarray(jax.nn.softmax(x @ layer.router.weight[...], -1), np.float64), memories, -1)
    weights = scores / scores.sum(-1, keepdims=True)
    half, want = 4, np.zeros((ROWS, TIME, 2, 12))

    def filtered(y, taps):
        taps, y = np.asarray(taps, np.float64), np.pad(np.asarray(y, np.float64), ((3, 0), (0, 0)))
        y = sum(y[w : len(y) - 3 + w] * taps[:, w] for w in range(4))
        return y / (1 + np.exp(-y))

    def turned(y, t):
        y = y.reshape(len(t), 2, 8)
        z = (y[..., :half] + 1j * y[..., half:]) * np.exp(1j * t[:, None, None] * 10000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag], -1)

    for memory in range(layer.memories):
        for b in range(ROWS):
            shared = memory == layer.num_memories
            t = np.arange(TIME) if shared else np.flatnonzero((memories[b] == memory).any(-1))
            s = np.asarray(x[b, t], np.float64)
            q = turned(filtered(s @ np.asarray(rule.q_proj.weight[...]), rule.q_conv1d[...]), t)
            k = turned(filtered(s @ np.asarray(rule.k_proj[memory]), rule.k_conv1d[...]), t)
            v = filtered(s @ np.asarray(rule.v_proj[memory]), rule.v_conv1d[...]).reshape(len(t), 2, 12)
            for h in range(2):
                steps = np.arange(len(t))[:, None] - np.arange(len(t))
                decay = np.where(steps >= 0, (1 - 2.0 ** (-5 - h)) ** np.maximum(steps, 0), 0)
                o = (decay * (q[:, h] @ k[:, h].T)) @ v[:, h] / 8**0.5
                w = 1.0 if shared else (weights[b, t] * (memories[b, t] == memory)).sum(-1)[:, None]
                want[b, t, h] += w * o
    assert_close(jax.jit(lambda layer, x: layer.read(x)[0])(layer, x), want, 1e-5)


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_any_split_equals_the_full_pass(rule, x):
    """Pieces and single steps from the cache, with padding on the left of one row and two documents."""
    layer = layer_of(rule)
    mask = jnp.ones((ROWS, TIME), jnp.int32).at[0, :3].set(0)
    documents = jnp.where(jnp.arange(TIME) < 7, 0, 1)[None].repeat(ROWS, 0)
    run = jax.jit(lambda layer, *arguments: layer(*arguments, layer=1))
    want = run(layer, x, mask, documents, None)[0]
    cache, begin, got = layer.empty_cache(3, ROWS, jnp.float32), 0, []
    for n in (5, 1, 5):
        now = slice(begin, begin + n)
        y, _, cache = run(layer, x[:, now], mask[:, now], documents[:, now], cache)
        got.append(y)
        begin += n
    assert_close(jnp.concatenate(got, 1), want, 2e-5)
    assert not np.asarray(want)[np.asarray(mask) == 0].any()


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_nothing_leaks(rule, x):
    """Exactly 0 from later tokens, other rows and other documents; not 0 from earlier ones of the same."""
    layer = layer_of(rule)
    documents = jnp.where(jnp.arange(TIME) < 6, 0, 1)[None].repeat(ROWS, 0)
    sizes = dependence(lambda x: layer(x, None, documents, layer=1)[0], x)
    row, time = np.arange(ROWS), np.arange(TIME)
    may = (
        (row[:, None, None, None] == row[:, None])
        & (time[:, None, None] >= time)
        & np.asarray(documents[0][:, None, None] == documents[0])
    )
    assert (sizes[may] > 0).all() and not sizes[~may].any()


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_bfloat16(rule, x):
    """The output in bfloat16 is within 5 % of float32, on tokens of the same routing."""
    layer = layer_of(rule, mixture=False)
    run = jax.jit(lambda layer, x: layer(x, layer=1)[0])
    half, want = run(layer, x.astype(jnp.bfloat16)), run(layer, x)
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), want, 0.05)
