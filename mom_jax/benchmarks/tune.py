"""``python -m mom_jax.benchmarks.tune``: better configurations for this machine's kernels, change by change.

    python -m mom_jax.benchmarks.tune delta_rule --size 256 --dtype bfloat16

Doubles and halves each number of the configurations (`pallas_kernels.configs`) that an operator's kernels have here,
and keeps what makes a forward and backward pass at the published sizes faster, until nothing does. Prints the entries
to write into the operator's ``CONFIGS``. Numbers that do not compile or do not fit are passed over.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.progress import Progress

from mom_jax.benchmarks.kernel_passes import DTYPES, OPERATORS, SIZES, Case, training
from mom_jax.benchmarks.timing import interleaved_seconds, machine
from mom_jax.errors import InputError
from mom_jax.ops.dispatch import target
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Configs, Entry, find
from pallas_kernels.tpu import calls

CHUNKS = 768  # 49,152 rows: a batch of 16,384 tokens, each in three memories
GAIN = 0.99  # a change counts when it takes less than this share of the time
Choice = dict[str, Config]  # by kernel


class Measured(NamedTuple):
    """The best configurations and their time."""

    choice: Choice
    seconds: float


def generation() -> str:
    """Of this machine's device, as tables of configurations name it."""
    return target().generation or calls.device().generation


def configs(case: Case) -> Configs:
    """The table of an operator's kernels."""
    return sys.modules[OPERATORS[case.platform][case.operator].load().__module__].CONFIGS


def chosen(case: Case, device: str) -> Choice:
    """The configurations that a case runs with on a device."""
    itemsize = jnp.dtype(case.dtype).itemsize
    return {name: find(entries, device, itemsize, case.size) for name, entries in configs(case).items()}


def neighbours(config: Config) -> list[Config]:
    """The configuration with one of its numbers doubled or halved."""
    numbers = {name: number for name, number in config._asdict().items() if number}
    others = [(name, other) for name, n in numbers.items() for other in sorted({2 * n, max(1, n // 2)} - {n})]
    return [config._replace(**{name: other}) for name, other in others]


def search(start: Choice, seconds: Callable[[Choice], float]) -> Measured:
    """Follows the changes that make ``seconds`` less; infinite for configurations that cannot run."""
    best, tried = Measured(start, seconds(start)), [start]
    while (better := _better(best, seconds, tried)) is not None:
        best = better
    return best


def _better(best: Measured, seconds: Callable[[Choice], float], tried: list[Choice]) -> Measured | None:
    """The first change that helps, if any does."""
    for name, config in best.choice.items():
        for other in neighbours(config):
            choice = best.choice | {name: other}
            if choice in tried:
                continue
            tried.append(choice)
            candidate = Measured(choice, seconds(choice))
            if candidate.seconds < GAIN * best.seconds:
                return candidate
    return None


def choose(case: Case, choice: Choice) -> None:
    """Puts configurations before all others in the operator's table."""
    for name, config in choice.items():
        configs(case)[name].insert(0, Entry(config))


def measure(case: Case, choice: Choice) -> float:
    """Seconds of a forward and backward pass with these configurations; infinite where they cannot run."""
    choose(case, choice)
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
    arguments, platform = parser.parse_args(), target().platform
    if arguments.operator not in OPERATORS.get(platform, ()):
        parser.error(str(InputError("operator", arguments.operator, f"has no kernel for {target().kind} to tune")))
    case = Case(platform, arguments.operator, arguments.size, arguments.dtype)
    try:
        start = chosen(case, generation())
    except Unsupported as reason:
        parser.error(f"{reason}: there is nothing to tune")
    print(machine())
    with Progress() as progress:
        task = progress.add_task("measuring", total=None)

        def seconds(choice: Choice) -> float:
            progress.advance(task)
            return measure(case, choice)

        before, best = seconds(start), search(start, seconds)
    print(f"{1e3 * before:.2f} ms before, {1e3 * best.seconds:.2f} ms with")
    itemsize = jnp.dtype(case.dtype).itemsize
    for name, config in best.choice.items():
        print(f"  {name}: Entry({config}, ({generation()!r},), itemsize={itemsize}, size={case.size})")


if __name__ == "__main__":
    main()
