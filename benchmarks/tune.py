"""``python -m benchmarks.tune``: better parameters for the kernels of this machine's GPU or TPU, one change at a time.

    python -m benchmarks.tune delta_rule --size 256 --dtype bfloat16

Doubles and halves each number of an operator's parameter table (blocks, warps, stages; heads of a block) and keeps what
makes a forward and backward pass at the published sizes faster, until nothing does. Prints the entry to write into the
table beside the kernel. Numbers that do not compile or do not fit are passed over.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.progress import Progress

from benchmarks.timing import interleaved_seconds, machine
from mom_jax.errors import InputError
from mom_jax.ops.dispatch import target
from pallas_kernels.tpu import parts
from tools.kernels.cases import DTYPES, OPERATORS, SIZES, Case, training

CHUNKS = 768  # 49,152 rows: a batch of 16,384 tokens, each in three memories
GAIN = 0.99  # a change counts when it takes less than this share of the time


class Found(NamedTuple):
    """The best entries and their time."""

    entries: list[Any]
    seconds: float


def tables(case: Case) -> list[tuple[Any, Any]]:
    """Dictionaries with the parameters of an operator's kernels, and the key of the entry that this device uses."""
    if case.platform == "gpu":
        names = {"delta_rule": ["delta_rule_kernels"], "grouped_matmul": ["grouped_matmul"]}
        names = names.get(case.operator, ["linear_state", case.operator])
        modules = [importlib.import_module(f"pallas_kernels.gpu.{name}") for name in names]
        return [(module.TUNING[target().generation], jnp.dtype(case.dtype).itemsize) for module in modules]
    generation = parts.device().generation
    if case.operator == "delta_rule":
        heads = importlib.import_module("pallas_kernels.tpu.delta_rule_calls").HEADS
        return [(heads[generation], case.dtype)]
    return [(importlib.import_module(f"pallas_kernels.tpu.{case.operator}").TUNING.heads, generation)]


def neighbours(entry: Any) -> list[Any]:
    """The entry with one of its numbers doubled or halved."""
    numbers, structure = jax.tree.flatten(entry)
    changed = []
    for place, number in enumerate(numbers):
        for other in {number * 2, max(1, number // 2)} - {number}:
            changed.append(jax.tree.unflatten(structure, [*numbers[:place], other, *numbers[place + 1 :]]))
    return changed


def search(start: list[Any], seconds: Callable[[list[Any]], float]) -> Found:
    """Follows the changes that make ``seconds`` less; infinite for entries that cannot run."""
    best, tried = Found(start, seconds(start)), [start]
    while (better := _better(best, seconds, tried)) is not None:
        best = better
    return best


def _better(best: Found, seconds: Callable[[list[Any]], float], tried: list[Any]) -> Found | None:
    """The first change that helps, if any does."""
    for place, entry in enumerate(best.entries):
        for other in neighbours(entry):
            entries = [*best.entries[:place], other, *best.entries[place + 1 :]]
            if entries in tried:
                continue
            tried.append(entries)
            found = Found(entries, seconds(entries))
            if found.seconds < GAIN * best.seconds:
                return found
    return None


def measure(case: Case, places: list[tuple[Any, Any]], entries: list[Any]) -> float:
    """Seconds of a forward and backward pass with these entries; infinite where they cannot run."""
    for (table, key), entry in zip(places, entries, strict=True):
        table[key] = entry
    options = {"device": target().generation} if case.platform == "gpu" else {}
    function, shapes = training(case, chunks=CHUNKS, **options)
    jax.clear_caches()
    try:
        arguments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return interleaved_seconds({"pass": (jax.jit(function), arguments)}, rounds=5)["pass"]
    except (RuntimeError, ValueError):  # what compilers raise for too much memory, and kernels for sizes
        return float("inf")


def main() -> None:
    """Tunes one operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("operator", choices=sorted({name for names in OPERATORS.values() for name in names}))
    parser.add_argument("--size", type=int, choices=SIZES, default=256, help="K = V")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the rows")
    chosen, platform = parser.parse_args(), target().platform
    if chosen.operator not in OPERATORS.get(platform, ()):
        parser.error(str(InputError("operator", chosen.operator, f"has no kernel for {target().kind} to tune")))
    case = Case(platform, chosen.operator, chosen.size, chosen.dtype)
    places = tables(case)
    start = [table[key] for table, key in places]
    print(machine())
    with Progress() as progress:
        task = progress.add_task("measuring", total=None)

        def seconds(entries: list[Any]) -> float:
            progress.advance(task)
            return measure(case, places, entries)

        before, best = seconds(start), search(start, seconds)
    print(f"{1e3 * before:.2f} ms before, {1e3 * best.seconds:.2f} ms with")
    for (_, key), entry in zip(places, best.entries, strict=True):
        print(f"  {key}: {entry}")


if __name__ == "__main__":
    main()
