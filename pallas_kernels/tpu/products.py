"""Matrix products inside a TPU kernel, and indices and transposes of what belongs to rows.

Values of a chunk are float32 [MB, C, K] for a block of MB heads; what belongs to a row is a column
[MB, C, 1] or, as it lies in memory, [MB, 1, C].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_AXES = {"nn": (-1, -2), "nt": (-1, -1), "tn": (-2, -2)}  # summed over, of a and of b


def product(a: jax.Array, b: jax.Array, form: str = "nn") -> jax.Array:
    """``a b`` (form nn), ``a b^T`` (nt) or ``a^T b`` (tn) in float32, batched over all axes but the last two.

    Float32 operands are multiplied exactly to float32; bfloat16 ones in one pass.
    """
    (a_by, b_by), batch = _AXES[form], tuple(range(a.ndim - 2))
    dimensions = (((a.ndim + a_by,), (b.ndim + b_by,)), (batch, batch))
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _rounded_product(a: jax.Array, b: jax.Array, form: str, dtype: Any) -> jax.Array:
    """`product` of float32 matrices that are rounded to ``dtype`` first, in the gradients too."""
    return product(a.astype(dtype), b.astype(dtype), form)


rounded_product = jax.custom_vjp(_rounded_product, nondiff_argnums=(2, 3))


def _rounded_product_fwd(a, b, form, dtype):
    return rounded_product(a, b, form, dtype), (a, b)


def _rounded_product_bwd(form, dtype, operands, d):
    a, b = operands
    if form == "nn":
        return rounded_product(d, b, "nt", dtype), rounded_product(a, d, "tn", dtype)
    if form == "nt":
        return rounded_product(d, b, "nn", dtype), rounded_product(d, a, "tn", dtype)
    return rounded_product(b, d, "nt", dtype), rounded_product(a, d, "nn", dtype)


rounded_product.defvjp(_rounded_product_fwd, _rounded_product_bwd)


def pieces(x: jax.Array, count: int) -> list[jax.Array]:
    """``count`` bfloat16 arrays whose sum is float32 ``x`` to 8 bits each; three hold it exactly."""
    taken = []
    for _ in range(count):
        taken.append(x.astype(jnp.bfloat16))
        x = x - taken[-1].astype(jnp.float32)
    return taken


def split_product(a: jax.Array, b: jax.Array, count: int) -> jax.Array:
    """`product` of float32 values as ``count`` pieces each, without the products below their precision."""
    left, right = pieces(a, count), pieces(b, count)
    return functools.reduce(jnp.add, [product(left[i], right[j]) for i in range(count) for j in range(count - i)])


def row_index(shape: tuple[int, ...]) -> jax.Array:
    """The index along the last axis but one."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)


def column_index(shape: tuple[int, ...]) -> jax.Array:
    """The index along the last axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def to_column(x: jax.Array) -> jax.Array:
    """[MB, 1, C] as [MB, C, 1]."""
    return jnp.sum(diagonal(x), -1, keepdims=True)


def to_row(x: jax.Array) -> jax.Array:
    """[MB, C, 1] as [MB, 1, C]."""
    return jnp.sum(diagonal(x), -2, keepdims=True)


def diagonal(x: jax.Array) -> jax.Array:
    """The square matrix [MB, C, C] with the column [MB, C, 1] or the row [MB, 1, C] on its diagonal."""
    square = (x.shape[0], *[max(x.shape[1:])] * 2)
    return jnp.where(row_index(square) == column_index(square), x, 0.0)
