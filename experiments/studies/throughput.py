"""Throughput of training against the number of memories and those of a token; the paper has no such result.

    mom-jax experiment throughput --scale tiny       two CPU cores, at most six minutes
    mom-jax experiment throughput --scale paper      one GPU; spread it with --shard i/n

Measured is the training step of a whole model on random tokens: forward and backward pass, and the optimizer. The
best of several calls counts; compilation is timed by itself.

What to expect: a token is written to its k memories and to the shared one, so its assignments, and with them the work
of the recurrence and of the keys' and values' projections, are k + 1 times those of a single memory, whatever the
number of memories M. What does not grow with k either (queries, gate, output, MLP, embedding) brings the ratio below
that. What grows with M is small: the tokens that a sequence sends to one memory are padded to whole chunks of the
recurrence, so up to a chunk for each memory (the table gives the rows per token), the optimizer updates the
projections of all memories, and on a CPU the compiler has more groups of rows to compile.

Tiny: the sizes of mom-tiny, 4 sequences of 512 tokens. Paper: those of mom-340m in bfloat16 with recomputation as in
training, 8 sequences of 2,048 tokens, a thirty-second of the published batch.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from mom_jax.drawing import legend_beside
from mom_jax.models.config import MoMConfig
from mom_jax.training.config import TrainConfig, get_train_preset

from ..registry import Experiment, Point, Record

MIXTURES = ((2, 1), (4, 1), (4, 2), (8, 1), (8, 2), (8, 4), (16, 2), (16, 4))  # (memories, chosen by a token)
COLOURS = {1: "C1", 2: "C0", 4: "C2"}  # by k; top-2 is what the paper trains
_SINGLE = "C7"


def points(scale: str) -> list[Point]:
    """The single memory first, which all are compared with."""
    sizes: Point = {"preset": "mom-tiny", "batch_size": 4, "length": 512, "calls": 5}
    if scale == "paper":
        sizes = {"preset": "mom-340m", "batch_size": 8, "length": 2048, "calls": 10}
    mixtures = [{"architecture": "mom", "memories": m, "topk": k, **sizes} for m, k in MIXTURES]
    return [{"architecture": "single", "memories": 1, "topk": 1, **sizes}, *mixtures]


def training(point: Point) -> TrainConfig:
    """The training run whose step a point measures."""
    config = get_train_preset(point["preset"])
    sizes = {"mixture": point["architecture"] == "mom", "num_memories": point["memories"], "topk": point["topk"]}
    data = dataclasses.replace(config.data, batch_size=point["batch_size"], sequence_length=point["length"])
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes), data=data)


def run(point: Point, models: Path) -> dict[str, Any]:
    """Compiles the step and times it."""
    from mom_jax.models.accounting import account, total

    config = training(point)
    step_seconds, compile_seconds, loss = time_step(config, point["calls"])
    costs = total(account(config.model, point["length"]))
    return {
        "tokens_per_second": point["batch_size"] * point["length"] / step_seconds,
        "step_seconds": step_seconds,
        "compile_seconds": compile_seconds,
        "loss": loss,
        "rows_per_token": rows_per_token(config.model, point["length"]),
        "parameters": costs.parameters,
        "activated": costs.activated,
    }


def time_step(config: TrainConfig, calls: int) -> tuple[float, float, float]:
    """Seconds of the best of ``calls`` steps after a first one, seconds of compilation, and the last loss in nats."""
    import jax

    from mom_jax.runs import one_device
    from mom_jax.training.program import Program
    from mom_jax.training.step import make_train_step

    mesh = one_device()
    program = Program(config, mesh)
    state, batch = program.init_state(), _random_batch(config)
    with jax.set_mesh(mesh):
        begin = time.perf_counter()
        step = make_train_step(program).lower(state, batch).compile()
        compile_seconds = time.perf_counter() - begin
        seconds, loss = [], float("nan")
        for _ in range(calls + 1):
            begin = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - begin)
            loss = float(metrics["lm_loss"])
    return min(seconds[1:]), compile_seconds, loss


def rows_per_token(config: MoMConfig, length: int) -> float:
    """Rows of the packed sequences of a memory layer for each token: assignments, and the padding to chunks."""
    from flax import nnx

    from mom_jax.models.structure import build_model
    from mom_jax.ops.segments import packed_length

    mixer = nnx.eval_shape(lambda: build_model(config, 0)).blocks("memory").attn
    chunk = mixer.rule.chunk_rows(length)
    return packed_length(1, length, mixer.top_k, mixer.num_memories or 1, mixer.shared, chunk) / length


def _random_batch(config: TrainConfig) -> dict[str, Any]:
    import numpy as np

    shape = config.data.batch_size, config.data.sequence_length
    rows = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32)
    return {"input_ids": rows, "labels": np.roll(rows, -1, 1), "segment_ids": np.zeros_like(rows)}


def table(records: list[Record]) -> list[list[str]]:
    """Every model's throughput, and its ratio to the single memory where that has been measured."""
    heading = ["model", "memories", "memories per token", "tokens/s", "of single", "rows per token", "parameters",
               "active parameters", "compilation (s)"]  # fmt: skip
    single = next((_speed(r) for r in records if r["point"]["architecture"] == "single"), None)
    rows = []
    for record in records:
        point, result = record["point"], record["result"]
        mixture = point["architecture"] == "mom"
        name = f"MoM, top-{point['topk']}" if mixture else "single memory"
        counts = [f"{point['memories']} + 1", point["topk"] + 1] if mixture else [1, 1]
        ratio = f"{_speed(record) / single:.2f}" if single else ""
        cells = [name, *counts, f"{_speed(record):,.0f}", ratio, f"{result['rows_per_token']:.2f}"]
        cells += [f"{result['parameters']:,}", f"{result['activated']:,}", f"{result['compile_seconds']:.1f}"]
        rows.append([str(cell) for cell in cells])
    return [heading, *rows]


def findings(records: list[Record]) -> list[str]:
    """How much slower the mixture of the paper trains, and one of as many chosen among the most memories."""
    speeds = {(r["point"]["architecture"], r["point"]["memories"], r["point"]["topk"]): _speed(r) for r in records}
    single = speeds.pop(("single", 1, 1), None)
    most = max((memories for _, memories, topk in speeds if topk == 2), default=4)
    return [
        f"top-2 of {memories}: {speeds['mom', memories, 2] / single:.2f} of the single memory's tokens per second."
        for memories in dict.fromkeys((4, most))
        if single and ("mom", memories, 2) in speeds
    ]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Tokens per second against the number of memories, a line for each k."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    mixtures = [r for r in records if r["point"]["architecture"] == "mom"]
    for record in records:
        if record["point"]["architecture"] == "single":
            axes.axhline(_speed(record), color=_SINGLE, linestyle="--", label="single memory")
    for k, colour in COLOURS.items():
        of_k = sorted((r for r in mixtures if r["point"]["topk"] == k), key=lambda r: r["point"]["memories"])
        if of_k:
            counts = [r["point"]["memories"] for r in of_k]
            axes.plot(counts, [_speed(r) for r in of_k], "o-", color=colour, label=f"MoM, top-{k} and shared")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({r["point"]["memories"] for r in mixtures}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="routed memories", ylabel="training tokens per second")
    axes.set_ylim(bottom=0)
    legend_beside(figure)
    return {"throughput": figure}


def _speed(record: Record) -> float:
    return record["result"]["tokens_per_second"]


EXPERIMENT = Experiment(points, run, plot, table, findings)
