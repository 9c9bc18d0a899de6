"""Recurrences chunk by chunk and token by token, mixtures beside single memories, on a CPU.

Forward plus backward in all arguments, T=2048, H=4, float32, one segment, in the chunks that layers
use. `command` prints the tables.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.benchmarks.operands import delta_rule_rows, one_segment
from mom_jax.benchmarks.timing import interleaved_seconds
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MEMORY_RULES, MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.delta_product import DeltaProductRows, delta_product
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.erase_and_write import ERASE_AND_WRITE, comba_rows, gated_deltanet2_rows, kda_rows
from mom_jax.ops.gated_slots import GatedSlotsRows, gated_slots
from mom_jax.ops.mesa import MESA, MesaRows
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY, RankOneDecayRows
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.sparse_choice import product_keys
from mom_jax.ops.sparse_delta import SparseDeltaRows, sparse_delta
from mom_jax.ops.titans import TitansRows, titans_linear
from mom_jax.ops.trapezoid import TrapezoidRows, trapezoid
from mom_jax.ops.ttt import TTTRows, ttt_linear
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array

TIME, HEADS = 2048, 4
EVERY_ROW = jnp.ones(TIME, bool)


class Entry(NamedTuple):
    """A primitive and its rows for K = V = size."""

    primitive: Primitive
    rows: Callable[..., Any]  # of `operands`


def operands(size: int) -> dict[str, Array]:
    """What rows are made of: q, k, v, gates for each head and each channel, strengths."""
    q, k, v, g, beta = delta_rule_rows(TIME, HEADS, size, size)
    channels = -0.3 * jax.nn.softplus(jax.random.normal(jax.random.key(1), q.shape))
    slots = jax.nn.softmax(jax.random.normal(jax.random.key(2), (TIME, HEADS, 64)))
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta, "channels": channels, "slots": slots}


ENTRIES = {
    "scalar decay": Entry(SCALAR_DECAY, lambda q, k, v, g, **_: ScalarDecayRows(q, k, v, g)),
    "delta": Entry(DELTA_RULE, lambda q, k, v, g, beta, **_: DeltaRuleRows(q, k, v, g, beta)),
    "vector decay": Entry(VECTOR_DECAY, lambda q, k, v, channels, **_: VectorDecayRows(q, k, v, channels)),
    "rwkv7": Entry(
        RANK_ONE_DECAY,
        lambda q, k, v, beta, channels, **_: RankOneDecayRows(q, k, v, channels, a=-k, b=beta[..., None] * k),
    ),
    "kda": Entry(ERASE_AND_WRITE, lambda q, k, v, beta, channels, **_: kda_rows(q, k, v, channels, beta)),
    "gated deltanet-2": Entry(
        ERASE_AND_WRITE,
        lambda q, k, v, channels, beta, **_: gated_deltanet2_rows(
            q, k, v, channels, *(jnp.broadcast_to(beta[..., None], x.shape) for x in (k, v))
        ),
    ),
    "comba": Entry(ERASE_AND_WRITE, lambda q, k, v, g, beta, **_: comba_rows(q, k, v, k, g, beta)),
    "delta product, 2 steps": Entry(
        delta_product(2), lambda q, k, v, g, beta, **_: DeltaProductRows(q, _twice(k), _twice(v), g, _twice(beta))
    ),
    "trapezoid": Entry(
        trapezoid(16),
        lambda q, k, v, g, beta, channels, **_: TrapezoidRows(q, k, v, g, beta, beta, channels[..., :16], EVERY_ROW),
    ),
    "mesa": Entry(MESA, lambda q, k, v, g, beta, **_: MesaRows(q, k, v, g, beta, jnp.ones(k.shape[1:]))),
    "sparse delta, 4,096 slots": Entry(sparse_delta(4096), lambda **x: _sparse_rows(**x)),
    "gsa, 64 slots": Entry(
        gated_slots(64), lambda q, k, v, channels, slots, **_: GatedSlotsRows(q, k, v, channels[..., :64], slots)
    ),
    "ttt": Entry(
        ttt_linear(16), lambda q, k, v, beta, **_: TTTRows(q, k, v, 0.1 * beta, EVERY_ROW, *_norm(k.shape[1:]))
    ),
    "titans": Entry(
        titans_linear(16),
        lambda q, k, v, beta, **_: TitansRows(q, k, v, 0.1 * beta, 0.01 * beta, 0.9 * beta, EVERY_ROW),
    ),
}


def _twice(x):
    return jnp.stack([x, x[::-1]], 2)


def _sparse_rows(q, k, v, g, beta, **_):
    """Sixteen slots of ``(K / 2)^2`` to read and to write."""
    (reads, q), (writes, k) = product_keys(8 * q, 16), product_keys(8 * k, 16)
    return SparseDeltaRows(q, k, v, g, beta, reads, writes)


def _norm(shape):
    return jnp.ones(shape), jnp.zeros(shape)


def rule_table(names: Iterable[str] = ENTRIES, sizes: tuple[int, ...] = (64, 128), rounds: int = 3) -> Iterator[str]:
    """Milliseconds of both forms, and their ratio."""
    yield "| recurrence | K=V | token scan ms | chunked ms | scan / chunked |"
    yield "|---|---|---|---|---|"
    for name in names:
        for size in sizes:
            entry, table = ENTRIES[name], one_segment(TIME, size)
            inputs = operands(size)
            calls = {impl: (_with_gradient(entry, table, impl), (inputs,)) for impl in ("reference", "xla")}
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


def slots_table(counts: tuple[int, ...] = (1024, 65536), rounds: int = 3) -> Iterator[str]:
    """Sparse delta memories of more and more slots: recurrence and layer, forward plus backward, and decoding."""
    yield "| slots | recurrence, us a token | layer, us a token | decoding, us a token |"
    yield "|---|---|---|---|"
    x = jax.random.normal(jax.random.key(0), (1, TIME, 256))
    calls = {}
    for slots in counts:
        entry = Entry(sparse_delta(slots), _named_rows)
        recurrence = _with_gradient(entry, one_segment(TIME, slots, rows=16), "xla")
        calls[f"{slots} recurrence"] = recurrence, (operands(64) | {"names": _names(slots)},)
        sizes = {"hidden_size": 256, "num_heads": HEADS, "head_dim": 64, "mixture": False}
        rule = {"memory_rule": "sparse_delta_memory", "rule_options": (f"table_slots={slots}",)}
        mixer = make_mixer(MoMConfig.from_dict(sizes | rule), "memory", nnx.Rngs(0))
        assert isinstance(mixer, MemoryMixer)
        graph, params = nnx.split(mixer)
        calls[f"{slots} layer"] = _mixer(graph), (params, x)
        calls[f"{slots} decoding"] = _decoding(graph), (params, x, mixer.empty_cache(1, 1, x.dtype))
    seconds = interleaved_seconds(calls, rounds)
    for slots in counts:
        each = (1e6 * seconds[f"{slots} {name}"] / TIME for name in ("recurrence", "layer", "decoding"))
        yield f"| {slots:,} | {' | '.join(f'{us:.0f}' for us in each)} |"


def _named_rows(v, g, beta, names, **_):
    """Sixteen slots to write and to read, evenly."""
    writes, reads = names.astype(jnp.int32)
    weights = jnp.full(writes.shape, 1 / 16)
    return SparseDeltaRows(weights, weights, v, g, beta, reads, writes)


def _names(slots):
    """Different slots, as floats, since operands have gradients."""
    apart = slots // 32
    drawn = jax.random.randint(jax.random.key(3), (TIME, HEADS, 32), 0, apart) + apart * jnp.arange(32)
    return jnp.moveaxis(drawn.reshape(TIME, HEADS, 2, 16), 2, 0).astype(jnp.float32)


def _decoding(graph):
    """One token after the other in one program; the memories are those of the call before."""

    def step(params, cache, x):
        y, _, cache = nnx.merge(graph, params)(x[:, None], None, None, cache)
        return cache, y

    def run(params, x, cache):
        return jax.lax.scan(lambda cache, x: step(params, cache, x), cache, jnp.moveaxis(x, 1, 0))[1]

    return jax.jit(run)


def _mixer(graph):
    def loss(params, x):
        return nnx.merge(graph, params)(x)[0].sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _with_gradient(entry, table, impl):
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(entry.primitive(entry.rows(**x), table, impl=impl)[0])))
