"""Fair timing: candidates take turns, so that a machine's drift hits all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def interleaved_seconds(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Best wall seconds of each call over ``rounds`` turns, after one warm-up that compiles.

    The best of many turns is the run that other load disturbed least. A turn is two calls and the
    second counts: the first pays for memory that a larger neighbour gave back to the system.
    """
    best = {}
    for name, (function, arguments) in calls.items():
        jax.block_until_ready(function(*arguments))
        best[name] = float("inf")
    for _ in range(rounds):
        for name, (function, arguments) in calls.items():
            jax.block_until_ready(function(*arguments))
            begin = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes that XLA allocates for intermediate values of one call."""
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert analysis is not None, "this backend does not report memory"
    return analysis.temp_size_in_bytes


def machine() -> str:
    """The device and the versions, for the head of a table."""
    device = jax.devices()[0]
    name = _cpu_name() if device.platform == "cpu" else device.device_kind
    cores = f", {len(os.sched_getaffinity(0))} cores" if device.platform == "cpu" else ""
    return f"{name}{cores}; Python {platform.python_version()}, jax {jax.__version__}, flax {version('flax')}"


def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
