"""The router's parts, alone and together: a mixture is its memories one by one, steps give the full pass, no leaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.cases import some
from support.compare import assert_close
from support.dependence import allowed, values_and_dependence
from support.parameters import randomised

from mom_jax.errors import InputError
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.layers.router import RouterTraining
from mom_jax.ops.documents import count_documents
from mom_jax.ops.mixing import mix

ROWS, TIME, D, H, K, M, TOP = 2, 7, 12, 2, 4, 4, 2
MASK = np.ones((ROWS, TIME), int)
MASK[0, 0] = 0
NUMBERS = np.array([[3, 3, 3, 3, 1, 1, 3], [0, 0, 0, 2, 2, 2, 2]])
DOCUMENTS = np.asarray(count_documents(jnp.asarray(NUMBERS), jnp.asarray(MASK)).index)
TRAINING = RouterTraining(jax.random.key(5), jnp.float32(0.7))
# fmt: off
CASES = {
    "one router": {"decay_spread": 3.0, "projection_rank": 1},
    "all at once": {"router_per_head": True, "router_reads": "apart", "router_scores": "sigmoid",
                    "router_renormalise": False, "shared": False, "router_bias": True},
    "a state to begin with": {"learned_initial_state": True},
    "in training": {"router_expert_choice": True, "router_renormalise": False, "router_per_head": True},
}
# fmt: on


@functools.cache
def layer_of(case: str) -> MemoryMixer:
    """A layer of gated delta memories without convolutions, with parameters that make every part matter."""
    sizes = {"num_heads": H, "head_k_dim": K, "num_memories": M, "top_k": TOP, "options": {"use_short_conv": False}}
    return randomised(nnx.eval_shape(lambda: MemoryMixer(D, **sizes, **CASES[case], rngs=nnx.Rngs(0))), 0.6)


def hidden():
    """Hidden states."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, TIME, D)), jnp.float32)


def decisions(case, x):
    """What is written [B, T, H, M] and the weights [B, T, H, M] of what is read, by the formulas alone."""
    layer, options = layer_of(case), CASES[case]
    kinds, heads = 1 + ("router_reads" in options), H if "router_per_head" in options else 1
    logits = np.asarray(x @ layer.router.weight[...], np.float64).reshape(ROWS, TIME, kinds, heads, M)
    if case == "in training":
        draw = jax.random.gumbel(jax.random.fold_in(TRAINING.key, 1), (ROWS, TIME, heads, M))
        logits = logits + 0.7 * np.asarray(draw).reshape(logits.shape)
    sigmoid = options.get("router_scores") == "sigmoid"
    scores = 1 / (1 + np.exp(-logits)) if sigmoid else np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    bias = np.asarray(layer.router_bias[...]).reshape(kinds, heads, M) if layer.biased else 0.0
    order = np.argsort(-(scores + bias), -1, kind="stable")[..., :TOP]
    hits = np.zeros(scores.shape)
    np.put_along_axis(hits, order, 1, -1)
    if case == "in training":  # the half of a row's tokens that score highest, as each token has two of four memories
        ranked = np.argsort(-np.where(MASK[:, :, None, None, None], scores, -1), 1, kind="stable")
        hits = np.zeros(scores.shape)
        np.put_along_axis(hits, ranked[:, : -(-TIME * TOP // M)], 1, 1)
    weights = scores * hits
    if options.get("router_renormalise", True):
        weights = weights / weights.sum(-1, keepdims=True)
    shape = (ROWS, TIME, H, M)
    return np.broadcast_to(hits[:, :, 0], shape), np.broadcast_to(weights[:, :, -1], shape)


def memory_by_memory(case, x, documents=DOCUMENTS):
    """What each memory adds to reads, [G, B, T, H, V], with a loop over rows, memories, heads and tokens."""
    layer = layer_of(case)
    writes, weights = decisions(case, x)
    initial = np.zeros((layer.memories, H, K, K))
    if layer.initial_state is not None:
        initial = np.asarray(layer.initial_state[...], np.float64)
    if layer.shared:
        writes, weights = (np.concatenate([y, np.ones((ROWS, TIME, H, 1))], -1) for y in (writes, weights))
    names = ("k_proj", "v_proj", "a_proj", "b_proj", "A_log", "dt_bias")
    p = {name: np.asarray(getattr(layer.rule, name)[...], np.float64) for name in names}
    pace = np.zeros(layer.memories) if layer.rule.pace is None else np.asarray(layer.rule.pace[...], np.float64)
    silu = lambda y: y / (1 + np.exp(-y))  # noqa: E731
    unit = lambda y: y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    x = np.asarray(x, np.float64)
    q = unit(silu(x @ np.asarray(layer.rule.q_proj.weight[...])).reshape(ROWS, TIME, H, K)) / K**0.5
    o = np.zeros((writes.shape[-1], ROWS, TIME, H, K))
    for b in range(ROWS):
        for m in range(writes.shape[-1]):
            k = unit(silu(x[b] @ p["k_proj"][m]).reshape(TIME, H, K))
            v = silu(x[b] @ p["v_proj"][m]).reshape(TIME, H, K)
            beta = 1 / (1 + np.exp(-x[b] @ p["b_proj"][m]))
            kept = np.exp(-np.exp(p["A_log"] + pace[m]) * np.log1p(np.exp(x[b] @ p["a_proj"][m] + p["dt_bias"])))
            for h in range(H):
                state, document = initial[m, h], documents[b, 0]
                for t in np.flatnonzero(MASK[b]):
                    if documents[b, t] != document:
                        state, document = initial[m, h], documents[b, t]
                    if writes[b, t, h, m]:
                        state = kept[t, h] * state
                        state = state + beta[t, h] * np.outer(k[t, h], v[t, h] - state.T @ k[t, h])
                    o[m, b, t, h] = weights[b, t, h, m] * (state.T @ q[b, t, h])
    return o


def check_steps(case, full):
    """Token by token from the cache; the last ones of a document without its number."""
    layer, x = layer_of(case), hidden()

    @jax.jit
    def step(layer, *arguments):
        reads, _, cache = layer.read(*arguments, layer=1)
        return mix(reads), cache

    cache, got = layer.empty_cache(3, ROWS, jnp.float32), []
    for t in range(TIME):
        now = slice(t, t + 1)
        y, cache = step(layer, x[:, now], jnp.asarray(MASK[:, now]), jnp.asarray(NUMBERS[:, now]), cache)
        got.append(y)
    assert_close(jnp.concatenate(got, 1), full, 2e-5)


@pytest.mark.parametrize("case", some(CASES, ("all at once", "in training")))
def test_decisions(case):
    """Values and contributions by definition, no dependence where none may be, exactly; the same by steps."""
    layer, x = layer_of(case), hidden()
    inputs = layer.router.inputs(TRAINING if case == "in training" else None, None, 1, x.shape[:2])

    def run(x):  # what memories add is carried behind the reads, so that one program gives both
        reads, router, _ = layer.read(x, jnp.asarray(MASK), jnp.asarray(NUMBERS), layer=1, inputs=inputs)
        energy = jnp.broadcast_to(router.energy[0][:, None], (ROWS, TIME, layer.memories))
        return jnp.concatenate([mix(reads).reshape(ROWS, TIME, -1), energy], -1)

    values, sizes, _ = jax.device_get(jax.jit(lambda x: values_and_dependence(lambda x: (run(x), None), x))(x))
    values, energy = np.split(values, [H * K], -1)
    values, want = values.reshape(ROWS, TIME, H, K), memory_by_memory(case, x)
    assert_close(values, want.sum(0), 1e-5)
    assert_close(energy[:, 0], (want**2).sum((2, 3, 4)).T, 1e-5)
    may = allowed(MASK > 0, DOCUMENTS)
    assert not sizes[~may].any() and (sizes[may] > 0).mean() > 0.7
    if case in ("all at once", "a state to begin with"):
        check_steps(case, values)


def test_a_state_to_begin_with():
    """Without documents; refused where a recurrence cannot begin anew."""
    layer, x = layer_of("a state to begin with"), hidden()
    want = memory_by_memory("a state to begin with", x, np.zeros_like(DOCUMENTS)).sum(0)
    mask = jnp.asarray(MASK)
    assert_close(jax.jit(lambda x: mix(layer.read(x, mask)[0]))(x), want, 1e-5)
    other = MemoryMixer(D, num_heads=H, head_k_dim=K, rule="rwkv7", learned_initial_state=True, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"learned_initial_state=True: .* segment_ids: .* rank one decay begin with n"):
        other.read(x, None, jnp.asarray(NUMBERS))


def test_the_task_teaches_every_router():
    """Also the one that decides what is written, whose choice is hard: straight through."""
    layer, x = layer_of("all at once"), hidden()
    graph, params = nnx.split(layer)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(mix(nnx.merge(graph, params).read(x)[0]) ** 2)))(params)
    columns = np.abs(np.asarray(gradient["router"]["weight"][...])).max(0)
    assert columns.shape == (2 * H * M,) and (columns.reshape(-1, M).max(-1) > 0).all()
    assert not np.asarray(gradient["router_bias"][...]).any()


def test_how_memories_differ_at_first():
    """Low ranks over a common matrix where they are low; routed memories from slow to fast, the shared one between."""
    make = lambda **how: MemoryMixer(D, num_heads=H, head_k_dim=K, rngs=nnx.Rngs(0), **how)  # noqa: E731
    layer = nnx.eval_shape(lambda: make(projection_rank=3))
    assert layer.rule.k_proj.common.shape == (D, H * K) and layer.rule.k_proj.down.shape == (M + 1, D, 3)
    assert layer.rule.b_proj.shape == (M + 1, D, H)
    layer = make(decay_spread=8.0, rule="kda")
    assert_close(jnp.exp(layer.rule.pace[...]), 8.0 ** np.array([-1 / 2, -1 / 6, 1 / 6, 1 / 2, 0]), 1e-6)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"learned_initial_state": True, "rule": "gsa"}, r"learned_initial_state=True: needs memories of one array"),
        ({"decay_spread": 2.0, "rule": "deltanet"}, r"decay_spread=2.0: needs memories that decay, .* DeltaNet do not"),
        ({"router_per_head": True, "rule": "ttt"}, r"router_per_head=True: cannot be used with TTTLinear"),
        ({"router_reads": "apart", "rule": "mamba3"}, r"router_reads=apart: cannot be used with Mamba3"),
        ({"router_reads": "elsewhere"}, r"router_reads=elsewhere: choose one of as_written, apart"),
    ],
)
def test_what_excludes_each_other(options, message):
    """Both options and the reason, in one line."""
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: MemoryMixer(D, num_heads=H, head_k_dim=K, rngs=nnx.Rngs(0), **options))


def test_training_does_not_decode():
    """Noise and the memories' choice are refused beside a cache."""
    layer = layer_of("one router")
    with pytest.raises(InputError, match=r"training=given with a cache: noise and the memories' own choice"):
        layer(hidden(), cache=layer.empty_cache(1, ROWS, jnp.float32), training=TRAINING)
