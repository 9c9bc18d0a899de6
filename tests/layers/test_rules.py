"""Every memory rule: a mixture is its memories one by one, any split gives the full pass, nothing leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens.read import parameters_by_name
from support.cases import some
from support.compare import assert_close
from support.definitions import convolved, turned
from support.dependence import allowed
from support.mixer import choose
from support.parameters import random_mixer

from mom_jax.errors import InputError
from mom_jax.layers.linear import rounded
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MEMORY_RULES, MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.documents import count_documents
from mom_jax.ops.mixing import mix
from tools.kernels.equations import calls

ROWS, TIME, D = 2, 11, 16
MASK = jnp.ones((ROWS, TIME), jnp.int32).at[0, :3].set(0)
NUMBERS = np.array([[3, 3, 3, 3, 1, 1, 1, 3, 3, 3, 3], [0, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0]])
DOCUMENTS = count_documents(NUMBERS, MASK)
OPTIONS = {
    "linear_attention": {"feature_map": "elu", "norm_feature_map": True},
    "gla": {"gate_low_rank_dim": 4, "gate_logit_normalizer": 2},
    "deltanet": {"allow_neg_eigval": True},
    "gsa": {"num_slots": 6, "gate_logit_normalizer": 2},
    "rwkv6": {"proj_low_rank_dim": 3, "decay_low_rank_dim": 4},
    "rwkv7": {"gate_low_rank_dim": 5, "decay_low_rank_dim": 4, "a_low_rank_dim": 3},
    "ttt": {"expand_v": 1.0, "mini_batch_size": 4},
    "titans": {"mini_batch_size": 4},
    "raven": {"num_slots": 6, "rule_options": ("slot_top_k=2",)},
    "sse": {"rule_options": ("partitions=3", "partition_top_k=2", "row_top_k=5", "gate_low_rank_dim=4")},
    "log_linear_mamba2": {"rule_options": ("log_linear_levels=5",)},
    "log_linear_gla": {"gate_low_rank_dim": 4, "gate_logit_normalizer": 2, "rule_options": ("log_linear_levels=5",)},
    # more than half of the slots, so that every token reads something of every other one
    "sparse_delta_memory": {"rule_options": ("table_slots=9", "slot_writes=5", "slot_reads=5")},
}
# Of their base class, which runs them in the same way for all: these are its options, and as it is by default.
CONVOLVED = ("gated_deltanet", "hgrn2", "mamba2", "mesanet", "retnet")


@functools.cache
def layer_of(rule: str, mixture: bool = True) -> MemoryMixer:
    """A layer of the rule with parameters that make every part matter; a mixture's are the same at every call."""
    fields = {"memory_rule": rule, "mixture": mixture, "use_short_conv": rule in CONVOLVED, "num_hidden_layers": 3}
    return random_mixer(0.4, **fields | OPTIONS.get(rule, {}))


def hidden():
    """Hidden states."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, TIME, D)), jnp.float32)


@functools.cache
def program(rule: str):
    """The mixture over whole rows, compiled once for all that is asked of it: (layer, x, memory_ids, mask, numbers,
    cache) to reads [B, T, H, V] and the new cache."""

    @jax.jit
    def run(layer, x, memory_ids, mask, numbers, cache):
        inputs = layer.router.inputs(None, memory_ids, 1, x.shape[:2])
        reads, _, after = layer.read(x, mask, numbers, cache, 1, inputs)
        return mix(reads), after

    return run


def chosen(layer: MemoryMixer) -> np.ndarray:
    """The memories [B, T, k] that the router chooses."""
    return choose(layer.router.weight[...], hidden(), layer.top_k)


def full_pass(rule: str, layer: MemoryMixer, x: jax.Array, memory_ids: np.ndarray) -> np.ndarray:
    """Reads of the whole rows in one pass."""
    return np.asarray(program(rule)(layer, x, memory_ids, MASK, NUMBERS, layer.empty_cache(3, ROWS, jnp.float32))[0])


def check_memories_in_another_order(rule, layer, want):
    """Memories with their tokens, parameters and columns of the router in other places read the same."""
    order = np.array([2, 0, 3, 1])
    graph, params = nnx.split(layer)
    values = nnx.to_pure_dict(params)
    routed = lambda x: np.concatenate([np.asarray(x)[order], np.asarray(x)[len(order) :]])  # noqa: E731
    values["rule"] |= {name: jax.tree.map(routed, values["rule"][name]) for name in layer.rule.per_memory}
    values["router"]["weight"] = np.asarray(values["router"]["weight"])[:, order]
    nnx.replace_by_pure_dict(params, values)
    got = full_pass(rule, nnx.merge(graph, params), hidden(), np.argsort(order)[chosen(layer)])
    assert_close(got, want, 1e-5)


def check_memories_one_by_one(layer, single, want):
    """Reads of each memory from a layer that holds it alone and sees its tokens, mixed by the router's weights."""
    graph, params = nnx.split(single)
    values, own = (jax.tree.map(np.asarray, nnx.to_pure_dict(x)) for x in (params, nnx.state(layer.rule)))
    scores = np.take_along_axis(np.asarray(jax.nn.softmax(hidden() @ layer.router.weight[...], -1)), chosen(layer), -1)
    weights, total = scores / scores.sum(-1, keepdims=True), 0.0
    read = jax.jit(lambda params, mask: mix(nnx.merge(graph, params).read(hidden(), mask, DOCUMENTS, layer=1)[0]))
    for memory in range(layer.memories):
        shared, hits = memory == layer.num_memories, chosen(layer) == memory
        weight = np.ones((ROWS, TIME)) if shared else (weights * hits).sum(-1)
        mask = np.asarray(MASK) * (shared | hits.any(-1))
        for name in values["rule"]:
            values["rule"][name] = own[name][memory : memory + 1] if name in layer.rule.per_memory else own[name]
        nnx.replace_by_pure_dict(params, values)
        total = total + (weight * mask)[..., None, None] * np.asarray(read(params, mask))
    assert_close(want, total, 1e-5)


def check_splits(rule, layer, want):
    """Five tokens, a single step from the cache and five more give the full pass; padding reads nothing."""
    step = jax.jit(lambda layer, x, mask, cache: layer.read(x, mask, None, cache, layer=1)[::2])
    place, cache, got = np.arange(TIME), layer.empty_cache(3, ROWS, jnp.float32), np.zeros_like(want)
    for now in (place < 5, place == 5, place > 5):
        if now.sum() == 1:  # it goes on with the document without its number
            reads, cache = step(layer, hidden()[:, now], MASK[:, now], cache)
            got[:, now] = mix(reads)
        else:
            numbers = np.where(now, NUMBERS, 5)
            y, cache = program(rule)(layer, hidden(), chosen(layer), MASK * now, numbers, cache)
            got += np.asarray(y)
    assert_close(got, want, 2e-5)
    assert not want[np.asarray(MASK) == 0].any()


def check_leaks(rule, layer, want):
    """Another token in a place changes what is read there and later in its document, and nothing else."""
    may = allowed(np.asarray(MASK, bool), np.asarray(DOCUMENTS.index))
    change = np.zeros(may.shape)
    for b, t in np.ndindex(ROWS, TIME):
        other = np.asarray(hidden()).copy()
        other[b, t] = np.random.default_rng(b * TIME + t).normal(size=D)
        change[:, :, b, t] = np.abs(full_pass(rule, layer, other, chosen(layer)) - want).max((2, 3))
    assert (change[may] > 1e-5 * np.abs(want).max()).all() and not change[~may].any()


# one of each kind: convolutions, token shift, sub-rows, an inner model, slots
ALONE = ("gated_deltanet", "rwkv7", "gated_deltaproduct", "ttt", "sse")


@pytest.mark.parametrize("rule", some(MEMORY_RULES, ("gated_deltanet", "rwkv7", "gla")))
def test_a_mixture(rule):
    """Padding on the left of one row, three documents with two numbers; one test, for one compilation."""
    layer = layer_of(rule)
    want = full_pass(rule, layer, hidden(), chosen(layer))
    check_leaks(rule, layer, want)
    check_splits(rule, layer, want)
    check_memories_in_another_order(rule, layer, want)
    if rule in ALONE:
        check_memories_one_by_one(layer, layer_of(rule, mixture=False), want)


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_dtypes(rule):
    """Outputs follow the input's dtype, states stay float32; the operators' tests hold bfloat16 to a budget."""
    layer = layer_of(rule, mixture=False)
    x, cache = hidden().astype(jnp.bfloat16), layer.empty_cache(3, ROWS, jnp.bfloat16)
    y, _, after = jax.eval_shape(lambda x, cache: layer(x, None, None, cache, layer=1), x, cache)
    assert y.dtype == jnp.bfloat16
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True))


@pytest.mark.parametrize("rule", ["gated_deltanet", "kda", "gla", "rwkv6", "rwkv7", "titans"])
def test_parameters_rounded_beforehand(rule):
    """Products of a bfloat16 step have the operands that they had, and some parameters are half as large."""
    layer = layer_of(rule)
    narrow, x = rounded(layer, jnp.bfloat16), hidden()[:, :1].astype(jnp.bfloat16)
    cache = layer.empty_cache(3, ROWS, jnp.bfloat16)

    def operands(layer):
        products = calls("dot_general", lambda x, cache: layer(x, None, None, cache, layer=1), x, cache)
        return [[(v.aval.shape, v.aval.dtype) for v in product.invars] for product in products]

    assert operands(narrow) == operands(layer)
    half = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(narrow))].count(jnp.bfloat16)
    assert half >= 4 and narrow.router.weight[...].dtype == jnp.float32


def _given(rule, *options):
    return {"memory_rule": rule, "rule_options": options}


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"memory_rule": "kda", "use_output_gate": False}, r"use_output_gate=False: .* its own gate"),
        ({"memory_rule": "rwkv6", "use_output_gate": False}, r"use_output_gate=False: .* its own gate"),
        ({"memory_rule": "rwkv7", "use_output_gate": False}, r"use_output_gate=False: .* its own gate"),
        ({"memory_rule": "gated_deltanet2", "use_output_gate": False}, r"use_output_gate=False: .* its own gate"),
        (_given("gated_deltaproduct", "num_householder=0"), r"num_householder=0: must be at least 1"),
        (_given("comba", 'correction_factor="much"'), r"correction_factor=much: expected a number"),
        (_given("mamba3", 'rate="linear"'), r"rate=linear: choose one of softplus, rational"),
        (_given("raven", "slot_top_k=65"), r"slot_top_k=65: must be at most num_slots \(64\)"),
        (_given("sse", "partition_top_k=5"), r"partition_top_k=5: must be at most partitions \(4\)"),
        (_given("sse", "row_top_k=257"), r"row_top_k=257: must be at most the rows of a partition, head_dim \(256\)"),
        (_given("sparse_delta_memory", "table_slots=10"), r"table_slots=10: must be the square of .* such as 9"),
        (_given("sparse_delta_memory", "slot_reads=1025"), r"slot_reads=1025: must be at most table_slots \(1024\)"),
        (_given("log_linear_gla", "log_linear_levels=1"), r"log_linear_levels=1: must be at least 2"),
        ({"memory_rule": "ttt", "expand_v": 2.0}, r"expand_v=2\.0: must be 1 with memory_rule ttt"),
        ({"rule_options": ("rank=8",)}, r"rank=8: is not an option of GatedDeltaNet, which has .*allow_neg_eigval"),
        ({"memory_rule": "nowhere:Rule"}, r"memory_rule=nowhere:Rule: there is no module nowhere"),
        ({"memory_rule": "json:loads"}, r"memory_rule=json:loads: json has no class loads derived from MemoryRule"),
        ({"memory_rule": "mom_jax.layers.rules.rule:MemoryRule"}, r"does not define primitive and rows"),
    ],
)
def test_what_a_rule_refuses(fields, message):
    """Field, value and remedy in one line, before a parameter is made."""
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: make_mixer(MoMConfig(**fields), "memory", nnx.Rngs(0)))


def test_retnet_by_definition():
    """Decay for each token of the memory, rotation for each token of the row."""
    layer, x = layer_of("retnet"), hidden()
    p = {name: np.asarray(y, np.float64) for name, y in parameters_by_name(nnx.state(layer.rule)).items()}
    memories = choose(layer.router.weight[...], x, layer.top_k)
    scores = np.take_along_axis(np.asarray(jax.nn.softmax(x @ layer.router.weight[...], -1), np.float64), memories, -1)
    weights = scores / scores.sum(-1, keepdims=True)
    want = np.zeros((ROWS, TIME, 2, 12))
    for memory in range(layer.memories):
        for b in range(ROWS):
            shared = memory == layer.num_memories
            t = np.arange(TIME) if shared else np.flatnonzero((memories[b] == memory).any(-1))
            s = np.asarray(x[b, t], np.float64)
            q = convolved(s @ p["q_proj.weight"], p["q_conv1d"]).reshape(len(t), 2, 8)
            k = convolved(s @ p["k_proj"][memory], p["k_conv1d"]).reshape(len(t), 2, 8)
            q, k = (turned(y, t[:, None, None]) for y in (q, k))
            v = convolved(s @ p["v_proj"][memory], p["v_conv1d"]).reshape(len(t), 2, 12)
            for h in range(2):
                steps = np.arange(len(t))[:, None] - np.arange(len(t))
                decay = np.where(steps >= 0, (1 - 2.0 ** (-5 - h)) ** np.maximum(steps, 0), 0)
                o = (decay * (q[:, h] @ k[:, h].T)) @ v[:, h] / 8**0.5
                w = 1.0 if shared else (weights[b, t] * (memories[b, t] == memory)).sum(-1)[:, None]
                want[b, t, h] += w * o
    assert_close(jax.jit(lambda layer, x: mix(layer.read(x)[0]))(layer, x), want, 1e-5)
