"""A training pass of every operator that has kernels, for the benchmarks and tools that compile or time them all."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks

HEADS, CHUNK, CHUNKS = 4, 64, 16
SIZES = (64, 128, 256)
DTYPES = ("float32", "bfloat16")
_QKV = {"q": "N H K", "k": "N H K", "v": "N H V"}
_KERNELS = {  # by operator: its rows, and the platforms
    "delta_rule": (_QKV | {"g": "N H", "beta": "N H"}, ("gpu", "tpu")),
    "scalar_decay": (_QKV | {"g": "N H"}, ("gpu", "tpu")),
    "vector_decay": (_QKV | {"g": "N H K", "bonus": ""}, ("gpu", "tpu")),
    "rank_one_decay": (_QKV | {"g": "N H K", "a": "N H K", "b": "N H K"}, ("tpu",)),
    "grouped_matmul": ({}, ("gpu",)),
}
OPERATORS = {p: tuple(name for name, (_, on) in _KERNELS.items() if p in on) for p in ("gpu", "tpu")}


class Case(NamedTuple):
    """An operator on a platform at a size, K = V."""

    platform: str
    operator: str
    size: int
    dtype: str


def kernel(case: Case) -> Callable:
    """The operator's function; its module has ``CONFIGS``."""
    return getattr(importlib.import_module(f"pallas_kernels.{case.platform}.{case.operator}"), case.operator)


def training(case: Case, chunks: int = CHUNKS, **options: Any) -> tuple[Callable, tuple[Any, ...]]:
    """A forward and backward pass over chunks without initial states, and the shapes of its arguments.

    ``options`` are keywords of the operator.
    """
    operator, rows = kernel(case), _KERNELS[case.operator][0]
    inputs, fixed, constants = _recurrence(case, rows, chunks) if rows else _grouped(case, chunks)

    def both(inputs, fixed):
        def outputs(*inputs):
            return operator(*inputs, *fixed, *constants, **options)[0]  # without final states

        y, pull = jax.vjp(outputs, *inputs)
        return y, pull(jnp.ones_like(y))

    return both, (inputs, fixed)


def _recurrence(case, rows, chunks):
    sizes = {"N": chunks * CHUNK, "H": HEADS, "K": case.size, "V": case.size}
    inputs = []
    for name, axes in rows.items():
        dtype = "float32" if name in ("g", "beta") else case.dtype
        inputs.append(jax.ShapeDtypeStruct([sizes[axis] for axis in axes.split()], dtype) if axes else None)
    flags: Any = jax.ShapeDtypeStruct((chunks,), jnp.bool)
    segment: Any = jax.ShapeDtypeStruct((chunks,), jnp.int32)
    return tuple(inputs), (Chunks(segment, flags, flags, None),), (None, 1.0)


def _grouped(case, chunks):
    width = HEADS * case.size
    x = jax.ShapeDtypeStruct((chunks * CHUNK, width), case.dtype)
    weight = jax.ShapeDtypeStruct((5, width, width), case.dtype)
    return (x, (weight,)), (jax.ShapeDtypeStruct((5,), jnp.int32),), (CHUNK,)
