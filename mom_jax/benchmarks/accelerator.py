"""Kernels on this machine's GPU or TPU, beside PyTorch where its packages are; `command` prints the tables.

bfloat16, the published sizes (4 heads of 256, 4 memories, top-2 and a shared one). Times are the best
of several turns that all candidates take in one process.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.benchmarks.operands import delta_rule_rows
from mom_jax.benchmarks.timing import Call, interleaved_seconds
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.segments import ChunkTable, plan_packing


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured."""

    heads: int = 4
    size: int = 256  # K = V
    hidden: tuple[int, ...] = (1024, 2048)
    lengths: tuple[int, ...] = (2048, 8192, 65536)
    tokens: int = 16384  # of a batch; longer rows make it larger
    batches: tuple[int, ...] = (1, 16, 256)  # decoding
    layers: int = 24  # decoding
    copied: int = 1 << 30  # bytes of the copy that measures bandwidth
    rounds: int = 10


FULL = Sizes()
TINY = Sizes(2, 64, (64,), (128,), 128, (1,), 2, 1 << 20, 1)
BYTES = 2  # of a bfloat16


def reference_calls(name: str, *sizes: object) -> dict[str, Call]:
    """The reference's calls, none where it cannot run."""
    packages = ("torch", "fla")
    if jax.default_backend() != "gpu" or not all(importlib.util.find_spec(p) for p in packages):
        return {}
    from mom_jax.evals.reference import speed

    return {f"PyTorch {what}": (call, ()) for what, call in getattr(speed, name)(*sizes).items()}


def copy_bandwidth(sizes: Sizes) -> float:
    """Bytes a second of a large copy, read and written."""
    x = jnp.zeros(sizes.copied // 4, jnp.float32)
    seconds = interleaved_seconds({"copy": (jax.jit(lambda x: x + 1), (x,))}, sizes.rounds)["copy"]
    return 2 * sizes.copied / seconds


def operator_table(sizes: Sizes = FULL) -> Iterator[str]:
    """The packed gated delta rule of a whole layer against the reference's operator over the same segments."""
    yield "| T | rows | pass | ours ms | XLA ms | PyTorch ms | PyTorch / ours | of the bandwidth floor |"
    yield "|---|---|---|---|---|---|---|---|"
    bandwidth = copy_bandwidth(sizes)
    for time in sizes.lengths:
        memories = jnp.argsort(jax.random.uniform(jax.random.key(0), (max(1, sizes.tokens // time), time, 4)))[..., :2]
        packing = plan_packing(memories, 4, shared=True, chunk_size=64)
        rows = packing.assignment.shape[0]
        q, k, v, g, beta = delta_rule_rows(rows, sizes.heads, sizes.size, sizes.size)
        arguments = (*(x.astype(jnp.bfloat16) for x in (q, k, v)), *(x * packing.valid[:, None] for x in (g, beta)))
        calls = {
            f"{name} {way}": (jax.jit(step), arguments)
            for name, impl in (("ours", "auto"), ("XLA", "xla"))
            for way, step in passes(functools.partial(_read, packing.table, impl)).items()
        }
        lengths = [int(n) for n in np.asarray(packing.length)]
        calls |= reference_calls("operator", lengths, sizes.heads, sizes.size)
        seconds = interleaved_seconds(calls, sizes.rounds)
        # q, k, v, o once; backward: these, do and three gradients, and q, k, v once more with the recomputation
        traffic = {"forward": 4, "training": 4 + 8 + 3}
        for way, arrays in traffic.items():
            floor = arrays * sum(lengths) * sizes.heads * sizes.size * BYTES / bandwidth
            times = _times(seconds, way)
            yield f"| {time} | {rows} | {way} | {times} | {100 * floor / seconds[f'ours {way}']:.0f} % |"
    yield f"\nCopy bandwidth {bandwidth / 1e9:.0f} GB/s."


def _read(
    table: ChunkTable, impl: str, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array
) -> jax.Array:
    return DELTA_RULE(DeltaRuleRows(q, k, v, g, beta), table, impl=impl)[0]


def layer_table(sizes: Sizes = FULL) -> Iterator[str]:
    """The whole MoM layer against ``MomAttention``."""
    yield "| hidden | T | batch | pass | ours ms | XLA ms | PyTorch ms | PyTorch / ours |"
    yield "|---|---|---|---|---|---|---|---|"
    for hidden in sizes.hidden:
        for time in sizes.lengths:
            batch = max(1, sizes.tokens // time)
            x = jax.random.normal(jax.random.key(0), (batch, time, hidden), jnp.bfloat16)
            calls = {
                f"{name} {way}": (jax.jit(step), (params, x))
                for name, impl in (("ours", "auto"), ("XLA", "xla"))
                for params, run in (_layer(sizes, hidden, impl),)
                for way, step in passes(run).items()
            }
            calls |= reference_calls("layer", batch, time, hidden, sizes.heads, sizes.size)
            seconds = interleaved_seconds(calls, sizes.rounds)
            for way in ("forward", "training"):
                yield f"| {hidden} | {time} | {batch} | {way} | {_times(seconds, way)} |"


def decoding_table(sizes: Sizes = FULL) -> Iterator[str]:
    """One token of a whole model."""
    yield "| hidden | layers | batch | ours ms | PyTorch ms | PyTorch / ours |"
    yield "|---|---|---|---|---|---|"
    for hidden in sizes.hidden:
        config = MoMConfig(hidden_size=hidden, num_hidden_layers=sizes.layers, num_heads=sizes.heads,
                           head_dim=sizes.size, tie_word_embeddings=True, compute_dtype="bfloat16")  # fmt: skip
        model = MoMForCausalLM(config, rngs=nnx.Rngs(0)).rounded()
        graph, params = nnx.split(model)

        @jax.jit
        def read(params, ids, cache, graph=graph):
            output = nnx.merge(graph, params)(ids, cache=cache)
            return output.logits[:, -1], output.cache

        for batch in sizes.batches:
            _, cache = read(params, jnp.zeros((batch, 128), jnp.int32), model.init_cache(batch))
            calls = {"ours decoding": (read, (params, jnp.zeros((batch, 1), jnp.int32), cache))}
            calls |= reference_calls("decoding", batch, hidden, sizes.layers, sizes.heads, sizes.size)
            seconds = interleaved_seconds(calls, sizes.rounds)
            yield f"| {hidden} | {sizes.layers} | {batch} | {_times(seconds, 'decoding', xla=False)} |"


def passes(run: Callable[..., jax.Array]) -> dict[str, Callable]:
    """``run`` and, with gradients in all its arguments, a pass of training."""

    def training(*arguments):
        y, pull = jax.vjp(run, *arguments)
        return pull(jnp.ones_like(y))

    return {"forward": run, "training": training}


def _layer(sizes: Sizes, hidden: int, impl: str) -> tuple[object, Callable[..., jax.Array]]:
    config = MoMConfig(hidden_size=hidden, num_heads=sizes.heads, head_dim=sizes.size, impl=impl)  # type: ignore[arg-type]
    mixer = make_mixer(config, "memory", nnx.Rngs(0))
    assert isinstance(mixer, MemoryMixer)
    graph, params = nnx.split(mixer)
    return params, lambda params, x: nnx.merge(graph, params)(x)[0]


def _times(seconds: dict[str, float], way: str, xla: bool = True) -> str:
    """Cells of milliseconds and of PyTorch's time over ours; a dash for what was not measured."""
    ours, other = seconds[f"ours {way}"], seconds.get(f"PyTorch {way}")
    cells = [f"{1e3 * ours:.2f}", *([f"{1e3 * seconds[f'XLA {way}']:.2f}"] if xla else [])]
    return " | ".join([*cells, *(("-", "-") if other is None else (f"{1e3 * other:.2f}", f"{other / ours:.2f}"))])
