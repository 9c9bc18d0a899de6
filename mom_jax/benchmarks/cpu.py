"""The operator, the mixer and the model on a CPU; `command` prints the tables.

Every number is the best of several turns, ratios are of calls that took turns in one process.
"""

import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.benchmarks.operands import delta_rule_rows, one_segment
from mom_jax.benchmarks.timing import interleaved_seconds, temporary_bytes
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.presets import mom_340m
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.loss import chunked_cross_entropy

_TOKENS = 32  # that a decoding program reads
HAS_JLA = importlib.util.find_spec("jla") is not None  # the package jax-linear-attention, for Python 3.12


def plain_scan(q, k, v, g, beta):
    """The recurrence as a bare `jax.lax.scan`, without segments: the fair baseline."""

    def body(state, row):
        q_t, k_t, v_t, g_t, beta_t = row
        state = jnp.exp(g_t)[:, None, None] * state
        error = beta_t[:, None] * (v_t - jnp.einsum("hkv,hk->hv", state, k_t))
        state = state + k_t[..., None] * error[:, None]
        return state, jnp.einsum("hkv,hk->hv", state, q_t) * q_t.shape[-1] ** -0.5

    return jax.lax.scan(body, jnp.zeros((*k.shape[1:], v.shape[-1])), (q, k, v, g, beta))[1]


def chunked(q, k, v, g, beta):
    """Our operator on one segment."""
    table = one_segment(q.shape[0], q.shape[2])
    return DELTA_RULE(DeltaRuleRows(q, k, v, g, beta), table, impl="xla")[0]


def jla(*rows):
    """The chunked operator of jax-linear-attention."""
    operator = importlib.import_module("jla.ops.chunked").gated_delta_rule
    return operator(*(x[None] for x in rows))[0][0]


def with_gradient(function):
    """A jitted forward plus backward pass of ``sum(function)`` in all arguments."""
    return jax.jit(jax.value_and_grad(lambda rows: function(*rows).sum()))


def operator_table() -> Iterator[str]:
    """Chunked against token by token and against jax-linear-attention."""
    yield "| K=V | token scan ms | ours ms | scan / ours | jax-linear-attention ms | theirs / ours |"
    yield "|---|---|---|---|---|---|"
    for size in (64, 128, 256):
        rows = (delta_rule_rows(2048, 4, size, size),)
        calls = {"scan": (with_gradient(plain_scan), rows), "ours": (with_gradient(chunked), rows)}
        if HAS_JLA:
            calls["jla"] = (with_gradient(jla), rows)
        ms = {name: 1e3 * s for name, s in interleaved_seconds(calls, rounds=3).items()}
        other = f"{ms['jla']:.0f} | {ms['jla'] / ms['ours']:.2f}" if "jla" in ms else "not installed | "
        yield f"| {size} | {ms['scan']:.0f} | {ms['ours']:.0f} | {ms['scan'] / ms['ours']:.1f} | {other} |"


def length_table() -> Iterator[str]:
    """Time and memory of the whole mixer, forward plus backward, as T doubles.

    Each length is measured by itself: turns with the other lengths would measure how the system
    hands memory to and fro, which at these sizes is a quarter of the time anyway.
    """
    yield "| T | seconds | x | temporary MiB | x |"
    yield "|---|---|---|---|---|"
    mixer, step = _mixer_step(num_memories=4, top_k=2, shared=True, hidden=256, heads=4, size=64)
    lengths = [2048 * 2**i for i in range(5)]
    before: tuple[float, float] | None = None
    for t in lengths:
        inputs = mixer, jax.random.normal(jax.random.key(t), (1, t, 256))
        seconds = interleaved_seconds({"mixer": (jax.jit(step), inputs)}, rounds=4)["mixer"]
        now = seconds, temporary_bytes(step, *inputs) / 2**20
        growth = [f"{a / b:.2f}" for a, b in zip(now, before, strict=True)] if before else ["", ""]
        yield f"| {t} | {now[0]:.3f} | {growth[0]} | {now[1]:.0f} | {growth[1]} |"
        before = now


def mixer_table() -> Iterator[str]:
    """Four memories, top-2 and a shared one against one memory of the same sizes."""
    yield "| hidden | H | K=V | T | one memory ms | MoM ms | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for hidden, size in ((256, 64), (1024, 256)):
        x = jax.random.normal(jax.random.key(0), (1, 2048, hidden))
        one = _mixer_step(num_memories=1, top_k=1, shared=False, hidden=hidden, heads=4, size=size)
        mom = _mixer_step(num_memories=4, top_k=2, shared=True, hidden=hidden, heads=4, size=size)
        calls = {name: (jax.jit(step), (params, x)) for name, (params, step) in (("one", one), ("mom", mom))}
        ms = {name: 1e3 * s for name, s in interleaved_seconds(calls, rounds=4).items()}
        yield f"| {hidden} | 4 | {size} | 2048 | {ms['one']:.0f} | {ms['mom']:.0f} | {ms['mom'] / ms['one']:.2f} |"


def _mixer_step(*, num_memories, top_k, shared, hidden, heads, size):
    sizes = {"num_heads": heads, "head_k_dim": size, "num_memories": num_memories, "top_k": top_k, "shared": shared}
    mixer = MemoryMixer(hidden, **sizes, options={"norm_eps": 1e-5}, rngs=nnx.Rngs(0))
    graph, params = nnx.split(mixer)

    def step(params, x):
        return jax.value_and_grad(lambda p, x: nnx.merge(graph, p)(x)[0].sum(), argnums=(0, 1))(params, x)

    return params, step


def decode_table() -> Iterator[str]:
    """Latency of one token after short and long contexts, and the bytes of state.

    Called token by token, as a server does, and in one program that scans over tokens, as `generate` does.
    """
    yield "| context | ms per token, one call each | in one program | state MiB |"
    yield "|---|---|---|---|"
    config = MoMConfig(vocab_size=32000, hidden_size=512, num_hidden_layers=4, num_heads=4, head_dim=128)
    model = MoMForCausalLM(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)

    def read(params, ids, cache):
        output = nnx.merge(graph, params)(ids, cache=cache)
        return output.logits[:, -1], output.cache

    def read_many(params, ids, cache):
        def step(carry, _):
            logits, cache = read(params, *carry)
            return (jnp.argmax(logits, -1)[:, None].astype(jnp.int32), cache), None

        return jax.lax.scan(step, (ids, cache), length=_TOKENS)[0]

    one, many = jax.jit(read), jax.jit(read_many)
    caches, cache, context = {}, model.init_cache(1), 0
    for goal in (1024, 65536):
        for _ in range((goal - context) // 1024):
            _, cache = one(params, jax.random.randint(jax.random.key(context), (1, 1024), 0, 32000), cache)
        caches[goal], context = cache, goal
    token = jnp.zeros((1, 1), jnp.int32)
    calls = {n: (params, token, c) for n, c in caches.items()}
    single = interleaved_seconds({str(n): (one, call) for n, call in calls.items()}, rounds=100)
    scanned = interleaved_seconds({str(n): (many, call) for n, call in calls.items()}, rounds=10)
    for n, c in caches.items():
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(c)) / 2**20
        yield f"| {n} | {1e3 * single[str(n)]:.2f} | {1e3 * scanned[str(n)] / _TOKENS:.2f} | {size:.2f} |"


def compile_table() -> Iterator[str]:
    """Compile time of a train step by depth."""
    yield "| layers | compile seconds | x |"
    yield "|---|---|---|"
    base = None
    for layers in (2, 24):
        config = dataclasses.replace(mom_340m(), num_hidden_layers=layers)
        seconds = _compile_seconds(config)
        base = base or seconds
        yield f"| {layers} | {seconds:.1f} | {seconds / base:.2f} |"


def _compile_seconds(config):
    abstract = nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(abstract)

    def loss(params, ids):
        model = nnx.merge(graph, params)
        hidden, _, _ = model.hidden_states(ids, remat="full")
        return chunked_cross_entropy(hidden, model.output_embedding(), ids)[0]

    begin = time.perf_counter()
    jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((1, 2048), jnp.int32)).compile()
    return time.perf_counter() - begin
