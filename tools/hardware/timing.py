"""Times of programs on a device: medians of turns, and of each kernel inside by the profiler."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tools.hardware.folder import Entry
from tools.hardware.session import Session

TURNS, TURN_SECONDS, LONGEST_TURN = 7, 0.02, 50
ROTATED_BYTES = 512 << 20  # of inputs, taken in turns: ten times the cache of an H100
Call = Callable[[], Any]  # returns what has to be waited for


def medians(calls: Mapping[str, Call], turns: int = TURNS) -> dict[str, float]:
    """Median seconds of each call; all take turns, of as many calls behind each other as last `TURN_SECONDS`."""
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, min(LONGEST_TURN, round(TURN_SECONDS / _seconds(call, 2))))
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats[name]))
    return {name: statistics.median(x) for name, x in taken.items()}


def _seconds(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        last = call()
    jax.block_until_ready(last)
    return (time.perf_counter() - begin) / repeats


def rotating(session: Session, entry: Entry) -> Call:
    """The program with several sets of inputs in turn; what it carries goes into the next call."""
    program = session.compiled(entry)
    if entry.carried:
        return _carrying(program, session.inputs(entry), entry.carried)
    count = max(1, min(4, ROTATED_BYTES // max(1, sum(draw.bytes for draw in entry.inputs))))
    sets, turn = [session.inputs(entry, number) for number in range(count)], 0

    def call():
        nonlocal turn
        turn += 1
        return program(*sets[turn % count])

    return call


def _carrying(program: Any, arrays: list[jax.Array], carried: Sequence[int]) -> Call:
    def call():
        outputs = program(*arrays)
        for place, x in zip(carried, outputs, strict=False):
            arrays[place] = x
        return outputs[-1]

    return call


def kernel_seconds(call: Call, repeats: int = 3) -> dict[str, tuple[float, float]]:
    """Seconds that the device spends in each kernel in one call, and how often it is launched, longest first."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            for _ in range(repeats):
                jax.block_until_ready(call())
        (file,) = Path(place).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    spent: dict[str, list[float]] = defaultdict(list)
    for plane in data.planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        spent[event.name].append(event.duration_ns / 1e9)
    longest = sorted(spent.items(), key=lambda item: -sum(item[1]))
    return {name: (sum(x) / repeats, len(x) / repeats) for name, x in longest}


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes a second of a copy of ``size`` bytes, read and written."""
    x = jnp.arange(size // 4, dtype=jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * size / medians({"copy": lambda: add(x)})["copy"]


def product_rate(size: int = 8192) -> float:
    """FLOPs a second of a product of two matrices of random bfloat16."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    multiply = jax.jit(jnp.matmul)
    return 2 * size**3 / medians({"product": lambda: multiply(a, b)})["product"]
