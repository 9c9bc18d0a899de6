"""Time and memory of generation against the length of the context, beside Transformer++ (paper, figure 3).

    mom-jax experiment generation --scale tiny       two CPU cores, about three minutes
    mom-jax experiment generation --scale paper      one GPU; spread it with --shard i/n

The figure says that what MoM needs does not grow with the length, and that Transformer++ runs out of memory before
512K tokens; it gives no numbers in print. Compared are the mixture, one memory of the same size, and attention in
every layer.

One sequence is continued with the greedy decoding step, up to 32 of them in one compiled scan; the best of several
calls counts, the first call, which warms up, does not. The time of 1,024 new tokens is computed from that of one. The
context itself is not read: the cache is made empty, with room for it, and told that it has been read. That costs the
same, for no step depends on what is in the cache: attention scores every slot, also those that its mask then hides,
and here the slots are as many as the context has tokens, the new ones included (`mom_jax.generate` rounds them up to
a power of two).

Memory is reported twice: bytes of the cache, and all that the compiled steps hold, which is float32 parameters, cache
and what XLA adds. The cache is donated, and a step writes it in place. On a CPU, XLA copies the keys and values of a
layer in another order before it multiplies them, at every step: that is half the cache of a model of two layers, and
most of the time measured for long contexts: attention is several times slower there than reading its cache would be.

Tiny: the sizes of mom-tiny in float32, 1K to 512K. Paper: those of mom-1.3b in bfloat16, 2K to 512K. A point that does
not fit is recorded as out of memory; JAX takes three quarters of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION
says otherwise.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mom_jax.models.baselines import single, transformer
from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import get_preset

from ..registry import Experiment, Point, Record

# The name of a point, the label, the colour, which is the same in every plot.
ARCHITECTURES = {
    "mom": ("MoM", "C0"),
    "single": ("single memory", "C7"),
    "attention": ("Transformer++", "C4"),
}
LENGTHS = {"tiny": (1, 2, 4, 16, 64, 256, 512), "paper": (2, 4, 8, 16, 32, 64, 128, 256, 512)}  # in 1,024 tokens
_NEW_TOKENS = 1024  # as in the paper's figure
_SECONDS = 1.0  # calls are repeated for as long, and at least once


def points(scale: str) -> list[Point]:
    """Length by length, so that a sweep that is stopped early has compared all."""
    sizes: Point = {"preset": "mom-tiny", "dtype": "float32"}
    if scale == "paper":
        sizes = {"preset": "mom-1.3b", "dtype": "bfloat16"}
    return [
        {"architecture": name, "length": length * 1024, "steps": _steps(name, length * 1024), **sizes}
        for length in LENGTHS[scale]
        for name in ARCHITECTURES
    ]


def _steps(name: str, length: int) -> int:
    """Steps of one call; fewer where attention makes each of them long."""
    return min(32, 2**21 // length) if name == "attention" else 32


def architecture(point: Point) -> MoMConfig:
    """The model of a point."""
    config = dataclasses.replace(get_preset(point["preset"]), compute_dtype=point["dtype"])
    made = {"mom": lambda: config, "single": lambda: single(config), "attention": lambda: transformer(config)}
    return made[point["architecture"]]()


def run(point: Point, models: Path) -> dict[str, Any]:
    """Measures one model after one context; `measure`, or that it does not fit."""
    import jax

    try:
        return measure(architecture(point), point["length"], point["steps"])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    return {"out_of_memory": True}


def measure(config: MoMConfig, length: int, steps: int) -> dict[str, Any]:
    """Times the decoding step where it attends over ``length`` tokens.

    Args:
        config: of the model, which gets random parameters.
        length: tokens of the context, the new ones included.
        steps: of one compiled call.

    Returns:
        JSON-ready: ``seconds_per_token``, ``seconds_of_1024_computed``, ``cache_bytes``, and ``total_bytes`` of all
        that the compiled steps hold.
    """
    import jax

    program = compiled_steps(config, length if "attention" in config.layer_kinds else None, steps)
    params, cache = _init(config)(), _model(config).init_cache(1, length)
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    cache = jax.block_until_ready(program(params, cache, length - steps))  # warms up
    seconds, end = [], time.perf_counter() + _SECONDS
    while not seconds or time.perf_counter() < end:
        begin = time.perf_counter()
        cache = jax.block_until_ready(program(params, cache, length - steps))
        seconds.append(time.perf_counter() - begin)
    best = min(seconds) / steps
    memory = program.memory_analysis()
    live = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "seconds_per_token": best,
        "seconds_of_1024_computed": best * _NEW_TOKENS,
        "cache_bytes": cache_bytes,
        "total_bytes": live + memory.temp_size_in_bytes,
    }


# What is kept from point to point: programs, which models whose cache has one size share between lengths.


@functools.lru_cache
def _model(config: MoMConfig) -> Any:
    """The model's structure and shapes."""
    from flax import nnx

    from mom_jax.models.structure import build_model

    return nnx.eval_shape(lambda: build_model(config, 0))


@functools.lru_cache
def _init(config: MoMConfig) -> Any:
    """A compiled function that makes random parameters."""
    import jax
    from flax import nnx

    from mom_jax.models.structure import build_model

    return jax.jit(lambda: nnx.state(build_model(config, 0)))


@functools.lru_cache
def compiled_steps(config: MoMConfig, capacity: int | None, steps: int) -> Any:
    """Decoding steps as one program: (parameters, cache, tokens that it has read) to cache; the cache is donated."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, params = nnx.split(_model(config))
    cache = jax.eval_shape(lambda: _model(config).init_cache(1, capacity))

    def decode(params, cache, read):
        model = nnx.merge(graph, params)

        def step(carry, _):
            token, cache = carry
            output = model(token, cache=cache)
            return (jnp.argmax(output.logits, -1).astype(jnp.int32), output.cache), None

        start = jnp.zeros((1, 1), jnp.int32), _having_read(cache, read)
        return jax.lax.scan(step, start, length=steps)[0][1]

    return jax.jit(decode, donate_argnums=1).lower(params, cache, 0).compile()


def _having_read(cache: Any, tokens: Any) -> Any:
    """The cache as if it had read that many tokens."""
    import jax.numpy as jnp

    from mom_jax.layers.cache import AttentionCache

    parts = {}
    for name, part in cache.kinds.items():
        part = dataclasses.replace(part, length=jnp.full_like(part.length, tokens))
        if isinstance(part, AttentionCache):
            slot = jnp.arange(part.position.shape[-1], dtype=part.position.dtype)
            position = jnp.where(slot < tokens, slot, -1)  # -1: free for a new token
            part = dataclasses.replace(part, position=jnp.broadcast_to(position, part.position.shape))
        parts[name] = part
    return dataclasses.replace(cache, kinds=parts)


def table(records: list[Record]) -> list[list[str]]:
    """Every length and model."""
    heading = ["context", "model", "ms per token", "s of 1,024 tokens (computed)", "cache MiB", "all MiB"]
    rows = []
    for record in sorted(records, key=lambda r: r["point"]["length"]):
        point, result = record["point"], record["result"]
        row = [_tokens(point["length"]), ARCHITECTURES[point["architecture"]][0]]
        if "out_of_memory" in result:
            rows.append([*row, "out of memory", "", "", ""])
            continue
        row += [f"{1e3 * result['seconds_per_token']:.2f}", f"{result['seconds_of_1024_computed']:.1f}"]
        rows.append([*row, *(f"{result[name] / 2**20:,.1f}" for name in ("cache_bytes", "total_bytes"))])
    return [heading, *rows]


def findings(records: list[Record]) -> list[str]:
    """What a token and the cache cost after the shortest and the longest context."""
    sentences = []
    lengths = [record["point"]["length"] for record in records]
    for length in dict.fromkeys((min(lengths), max(lengths))):
        of_length = {r["point"]["architecture"]: r["result"] for r in records if r["point"]["length"] == length}
        costs = [f"{ARCHITECTURES[name][0]} {_cost(of_length[name])}" for name in ARCHITECTURES if name in of_length]
        sentences.append(f"a token after {_tokens(length)}: {', '.join(costs)}.")
    return sentences


def _cost(result: dict[str, Any]) -> str:
    if "out_of_memory" in result:
        return "out of memory"
    return f"{1e3 * result['seconds_per_token']:.3g} ms and {result['cache_bytes'] / 2**20:,.3g} MiB of cache"


def plot(records: list[Record]) -> dict[str, Figure]:
    """Time of a token and memory against the length; a cross where the memory did not suffice."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ARCHITECTURES:
        points = sorted((r for r in records if r["point"]["architecture"] == name), key=lambda r: r["point"]["length"])
        _line(left, name, points, "seconds_per_token", 1e3, "o-")
        _line(right, name, points, "cache_bytes", 2**-20, "o-")
        _line(right, name, points, "total_bytes", 2**-20, ":")
    left.set(title="time", ylabel="milliseconds per token")
    right.set(title="memory: cache; dotted, all that a step holds", ylabel="MiB")
    lengths = sorted({r["point"]["length"] for r in records})
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(round(value))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    figure.supxlabel("context (tokens)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return {"generation": figure}


def _line(axes: Axes, name: str, records: list[Record], quantity: str, scale: float, style: str) -> None:
    label, colour = ARCHITECTURES[name]
    fits = [r for r in records if "out_of_memory" not in r["result"]]
    lengths, values = [r["point"]["length"] for r in fits], [scale * r["result"][quantity] for r in fits]
    axes.plot(lengths, values, style, color=colour, label=label)
    failed = [r["point"]["length"] for r in records if "out_of_memory" in r["result"]]
    if failed:
        heights = [0.96] * len(failed)  # at the top, whatever the scale
        axes.plot(failed, heights, "x", color=colour, label=f"{label}, out of memory", markersize=9,
                  transform=axes.get_xaxis_transform())  # fmt: skip


def _tokens(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


EXPERIMENT = Experiment(points, run, plot, table, findings)
