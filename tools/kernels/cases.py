"""What is compiled: every operator of `pallas_kernels` as training calls it, and the kernels inside."""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks

HEADS, CHUNK, CHUNKS = 4, 64, 16
SIZES = (64, 128, 256)
DTYPES = ("float32", "bfloat16")
OPERATORS = {
    "gpu": ("delta_rule", "scalar_decay", "vector_decay", "grouped_matmul"),
    "tpu": ("delta_rule", "scalar_decay", "vector_decay", "rank_one_decay"),
}


class Case(NamedTuple):
    """An operator at a size, K = V."""

    platform: str
    operator: str
    size: int
    dtype: str


def training(case: Case, chunks: int = CHUNKS, **options: Any) -> tuple[Callable, tuple[Any, ...]]:
    """A forward and backward pass over chunks without initial states, and the shapes of its arguments.

    ``options`` are keywords of the operator.
    """
    module = importlib.import_module(f"pallas_kernels.{case.platform}.{case.operator}")
    operator = getattr(module, case.operator)
    inputs, fixed = _ARGUMENTS[case.operator](case, chunks)

    def both(inputs, fixed):
        def outputs(*inputs):
            y = operator(*inputs, *fixed, *_CONSTANTS.get(case.operator, (None, 1.0)), **options)
            return y[0]  # without final states

        y, pull = jax.vjp(outputs, *inputs)
        return y, pull(jnp.ones_like(y))

    return both, (inputs, fixed)


def _rows(case, chunks, *channels):
    return jax.ShapeDtypeStruct((chunks * CHUNK, HEADS, *channels), case.dtype if channels else "float32")


def _table(chunks) -> Any:
    flags: Any = jax.ShapeDtypeStruct((chunks,), jnp.bool)
    segment: Any = jax.ShapeDtypeStruct((chunks,), jnp.int32)
    return Chunks(segment, flags, flags, None)


def _scalar(case, chunks):
    wide = _rows(case, chunks, case.size)
    return (wide, wide, wide, _rows(case, chunks)), (_table(chunks),)


def _delta(case, chunks):
    (*wide, gate), fixed = _scalar(case, chunks)
    return (*wide, gate, gate), fixed


def _vector(case, chunks):
    (*wide, _), (table,) = _scalar(case, chunks)
    return (*wide, jax.ShapeDtypeStruct(wide[0].shape, jnp.float32)), (None, table)


def _rank_one(case, chunks):
    (*wide, gate), (_, table) = _vector(case, chunks)
    return (*wide, gate, *wide[:2]), (table,)


def _grouped(case, chunks):
    width = HEADS * case.size
    x = jax.ShapeDtypeStruct((chunks * CHUNK, width), case.dtype)
    weight = jax.ShapeDtypeStruct((5, width, width), case.dtype)
    return (x, (weight,)), (jax.ShapeDtypeStruct((5,), jnp.int32),)


_ARGUMENTS = {
    "delta_rule": _delta,
    "scalar_decay": _scalar,
    "vector_decay": _vector,
    "rank_one_decay": _rank_one,
    "grouped_matmul": _grouped,
}
_CONSTANTS = {"grouped_matmul": (CHUNK,)}  # the others: no initial state, and a scale


def calls(primitive: str, function: Callable, *arguments: Any) -> Iterator[Any]:
    """The equations of a primitive in the program of ``function``, in order."""
    return _equations(primitive, jax.make_jaxpr(function)(*arguments).jaxpr)


def _equations(primitive: str, jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
            continue
        for part in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(part):
                yield from _equations(primitive, getattr(part, "jaxpr", part))


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


def moved_bytes(equation: Any) -> int:
    """Bytes of a kernel's inputs and outputs, each counted once."""
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
