"""A training pass of every operator that has kernels, for the benchmarks and tools that compile or time them all.

The operators are the primitives of `mom_jax.ops.primitives` that name kernels, and what stands around them: grouped
products, short convolutions, mixing.
"""

import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops import grouped_matmul, mixing, short_conv
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.primitives import PRIMITIVES
from pallas_kernels.chunks import Chunks

HEADS, CHUNKS = 4, 16
CHUNK = {"gpu": 64, "tpu": 128}  # rows, as layers have them
SIZES = (64, 128, 256)
DTYPES = ("float32", "bfloat16")


class Operator(NamedTuple):
    """What kernels of a platform compute."""

    path: str  # "module:function"
    primitive: Primitive | None  # None: no recurrence

    def load(self) -> Callable:
        """The function; its module has ``CONFIGS``."""
        return pkgutil.resolve_name(self.path)


def _operators(platform: str) -> dict[str, Operator]:
    others = grouped_matmul.KERNELS, short_conv.KERNELS, mixing.KERNELS
    kernels = [*((x.kernels, x) for x in PRIMITIVES.values()), *((x, None) for x in others)]
    paths = [(of[platform], primitive) for of, primitive in kernels if isinstance(of.get(platform), str)]
    return {path.partition(":")[2]: Operator(path, primitive) for path, primitive in paths}


OPERATORS = {platform: _operators(platform) for platform in ("gpu", "tpu")}  # by the name of the function


class Case(NamedTuple):
    """An operator on a platform at a size, K = V."""

    platform: str
    operator: str
    size: int
    dtype: str


def shapes(primitive: Primitive, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each of a primitive's rows, from its annotations and the sizes N, H, K and V."""
    by_name = {}
    for name, hint in typing.get_type_hints(primitive.rows).items():
        array = next(x for x in (*typing.get_args(hint), hint) if hasattr(x, "dim_str"))
        by_name[name] = tuple(sizes[axis] for axis in array.dim_str.split())
    return by_name


def training(case: Case, chunks: int = CHUNKS, **options: Any) -> tuple[Callable, tuple[Any, ...]]:
    """A forward and backward pass over chunks without initial states, and the shapes of its arguments.

    ``options`` are keywords of the operator.
    """
    operator = OPERATORS[case.platform][case.operator]
    run, make = operator.load(), _OTHERS.get(case.operator, _recurrence)
    inputs, fixed, constants = make(case, operator.primitive, chunks)

    def both(inputs, fixed):
        def outputs(*inputs):
            result = run(*inputs, *fixed, *constants, **options)
            return result[0] if isinstance(result, tuple) else result  # without final states

        y, pull = jax.vjp(outputs, *inputs)
        return y, pull(jnp.ones_like(y))

    return both, (inputs, fixed)


def _recurrence(case, primitive, chunks):
    """Rows in the case's dtype but for gates, without what all rows share; one segment for all chunks."""
    sizes = {"N": chunks * CHUNK[case.platform], "H": HEADS, "K": case.size, "V": case.size}
    dtypes = dict.fromkeys("qkvab", case.dtype)
    inputs = tuple(
        None if name in primitive.shared else jax.ShapeDtypeStruct(shape, dtypes.get(name, "float32"))
        for name, shape in shapes(primitive, sizes).items()
    )
    return inputs, (_chunks(chunks),), (None, 1.0)


def _chunks(count):
    flags: Any = jax.ShapeDtypeStruct((count,), jnp.bool)
    segment: Any = jax.ShapeDtypeStruct((count,), jnp.int32)
    runs: Any = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    return Chunks(segment, flags, flags, runs, None)


def _grouped(case, _, chunks):
    """Keys, values and gates of five memories."""
    width = HEADS * case.size
    tile = CHUNK[case.platform]
    x = jax.ShapeDtypeStruct((chunks * tile, width), case.dtype)
    weight, gates = (jax.ShapeDtypeStruct((5, width, columns), case.dtype) for columns in (width, 2 * HEADS))
    return (x, (weight, weight, gates)), (jax.ShapeDtypeStruct((5,), jnp.int32),), (tile,)


def _convolution(case, _, chunks):
    """Queries of tokens in three memories: gathered, with four taps, SiLU and norm."""
    rows, width = chunks * CHUNK[case.platform], HEADS * case.size
    x = jax.ShapeDtypeStruct((rows // 4, width), case.dtype)
    weight = jax.ShapeDtypeStruct((width, 4), "float32")
    token, copies = jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((rows // 4, 3), jnp.int32)
    return (x, weight, None, None), (_chunks(chunks), None, token, copies), (1, True, case.size, True)


def _mixing(case, _, chunks):
    """What tokens read of two memories and the shared one, normed and gated by SiLU."""
    rows = chunks * CHUNK[case.platform]
    tokens, head = rows // 4, (HEADS, case.size)
    y, gate = (jax.ShapeDtypeStruct((count, *head), case.dtype) for count in (rows, tokens))
    weights, scale = jax.ShapeDtypeStruct((tokens, 2), "float32"), jax.ShapeDtypeStruct((case.size,), "float32")
    row, assignment = jax.ShapeDtypeStruct((tokens, 3), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    return (y, weights, scale, gate), (row, assignment), (None, "silu", 1e-6)


_OTHERS = {"grouped_matmul": _grouped, "short_conv": _convolution, "mixing": _mixing}
