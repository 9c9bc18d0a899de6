"""Recurrences chunk by chunk and token by token, mixtures beside single memories, on a CPU.

Forward plus backward in all arguments, T=2048, H=4, float32, one segment, in the chunks that layers
use. `benchmarks.command` prints the tables.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.operands import delta_rule_rows, one_segment
from benchmarks.timing import interleaved_seconds
from mom_jax.models.config import MEMORY_RULES, MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.delta_rule import gated_delta_rule
from mom_jax.ops.gated_slots import gated_slots
from mom_jax.ops.rank_one_decay import kda, rank_one_decay
from mom_jax.ops.scalar_decay import scalar_decay
from mom_jax.ops.titans import titans_linear
from mom_jax.ops.ttt import ttt_linear
from mom_jax.ops.vector_decay import vector_decay
from mom_jax.typing import Array

TIME, HEADS = 2048, 4
EVERY_ROW = jnp.ones(TIME, bool)


class Entry(NamedTuple):
    """An operator ``(rows, table, impl) -> outputs`` and its inputs for K = V = size."""

    run: Callable[..., Array]
    inputs: Callable[[int], dict[str, Array]]


def gates(size: int) -> dict[str, Array]:
    """Operands of every rule: q, k, v, gates for each head and each channel, strengths."""
    q, k, v, g, beta = delta_rule_rows(TIME, HEADS, size, size)
    channels = -0.3 * jax.nn.softplus(jax.random.normal(jax.random.key(1), q.shape))
    unit = jnp.ones((HEADS, size))
    slots = jax.nn.softmax(jax.random.normal(jax.random.key(2), (TIME, HEADS, 64)))
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta, "channels": channels,
            "s": slots, "slots": channels[..., :64], "unit": unit}  # fmt: skip


def chosen(*names: str) -> Callable[[int], dict[str, Array]]:
    """Some of `gates`."""
    return lambda size: {name: gates(size)[name] for name in names}


ENTRIES = {
    "scalar decay": Entry(
        lambda x, table, impl: scalar_decay(x["q"], x["k"], x["v"], x["g"], table, impl=impl)[0],
        chosen("q", "k", "v", "g"),
    ),
    "delta": Entry(
        lambda x, table, impl: gated_delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"], table, impl=impl)[0],
        chosen("q", "k", "v", "g", "beta"),
    ),
    "vector decay": Entry(
        lambda x, table, impl: vector_decay(x["q"], x["k"], x["v"], x["channels"], table, impl=impl)[0],
        chosen("q", "k", "v", "channels"),
    ),
    "rwkv7": Entry(
        lambda x, table, impl: rank_one_decay(
            x["q"], x["k"], x["v"], -x["k"], x["beta"][..., None] * x["k"], x["channels"], table, impl=impl
        )[0],
        chosen("q", "k", "v", "beta", "channels"),
    ),
    "kda": Entry(
        lambda x, table, impl: kda(x["q"], x["k"], x["v"], x["channels"], x["beta"], table, impl=impl)[0],
        chosen("q", "k", "v", "beta", "channels"),
    ),
    "gsa, 64 slots": Entry(
        lambda x, table, impl: gated_slots(x["q"], x["k"], x["v"], x["s"], x["slots"], table, impl=impl)[0],
        chosen("q", "k", "v", "s", "slots"),
    ),
    "ttt": Entry(
        lambda x, table, impl: ttt_linear(
            x["q"], x["k"], x["v"], 0.1 * x["beta"], (x["unit"], 0 * x["unit"]), EVERY_ROW, table, impl=impl
        )[0],
        chosen("q", "k", "v", "beta", "unit"),
    ),
    "titans": Entry(
        lambda x, table, impl: titans_linear(
            x["q"], x["k"], x["v"], 0.1 * x["beta"], 0.01 * x["beta"], 0.9 * x["beta"], EVERY_ROW, table, impl=impl
        )[0],
        chosen("q", "k", "v", "beta"),
    ),
}


def rule_table(names: Iterable[str] = ENTRIES, sizes: tuple[int, ...] = (64, 128), rounds: int = 3) -> Iterator[str]:
    """Milliseconds of both forms, and their ratio."""
    yield "| recurrence | K=V | token scan ms | chunked ms | scan / chunked |"
    yield "|---|---|---|---|---|"
    for name in names:
        for size in sizes:
            entry, table = ENTRIES[name], one_segment(TIME, size)
            inputs = entry.inputs(size)
            calls = {impl: (_with_gradient(entry.run, table, impl), (inputs,)) for impl in ("reference", "xla")}
            ms = {impl: 1e3 * s for impl, s in interleaved_seconds(calls, rounds).items()}
            ratio = ms["reference"] / ms["xla"]
            yield f"| {name} | {size} | {ms['reference']:.0f} | {ms['xla']:.0f} | {ratio:.1f} |"


def mixture_table(rules: Iterable[str] = MEMORY_RULES, rounds: int = 3) -> Iterator[str]:
    """A mixer of four memories, top-2 and a shared one, beside one memory of the same sizes (hidden 256, K=V=64)."""
    yield "| `memory_rule` | one memory ms | MoM ms | ratio |"
    yield "|---|---|---|---|"
    x = jax.random.normal(jax.random.key(0), (1, TIME, 256))
    for rule in rules:
        calls = {}
        for name in ("one", "MoM"):
            sizes = {"hidden_size": 256, "num_heads": HEADS, "head_dim": 64, "mixture": name == "MoM"}
            config = MoMConfig.from_dict(sizes | {"memory_rule": rule})
            with nnx.use_eager_sharding(False):
                graph, params = nnx.split(make_mixer(config, "memory", nnx.Rngs(0)))
            calls[name] = _mixer(graph), (params, x)
        ms = {name: 1e3 * s for name, s in interleaved_seconds(calls, rounds).items()}
        yield f"| `{rule}` | {ms['one']:.0f} | {ms['MoM']:.0f} | {ms['MoM'] / ms['one']:.2f} |"


def _mixer(graph):
    def loss(params, x):
        return nnx.merge(graph, params)(x)[0].sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _with_gradient(run, table, impl):
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(run(x, table, impl))))
