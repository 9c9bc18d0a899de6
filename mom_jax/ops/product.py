"""The product of activations and a weight."""

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import target
from mom_jax.ops.precision import wide, widened
from mom_jax.typing import Array, Float

_PARTS = 8  # sums that a GPU adds up side by side for one row


def product(
    x: Float[Array, "*batch inputs"],
    weight: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
    *,
    apart: bool = False,
) -> Float[Array, "*batch outputs"]:
    """``x @ weight (+ bias)``; sums in float32 or wider, returns ``x.dtype``.

    A product that is rounded at once is asked for in ``x.dtype``: nothing wider is stored, and gradients meet operands
    of their own dtype. Not so for a single row, which XLA multiplies element by element: it would round each summand.

    ``apart``, on a GPU, from other products of x: XLA would join them, and copy both results out of the joint one.
    Single tokens are left to it, whose few rows it multiplies in parts: each product would add them up by itself.
    """
    on_gpu = target().platform == "gpu"
    if x.size == x.shape[-1] and on_gpu and weight.shape[0] % _PARTS == 0:
        y = _row(x, weight)
    else:
        dtype = wide(x.dtype) if bias is not None or x.size == x.shape[-1] else x.dtype
        weight = weight.astype(x.dtype)
        apart = apart and on_gpu and x.shape[-2] > 1
        y = _rounded_dot(x, weight, apart) if dtype == x.dtype else jnp.dot(x, weight, preferred_element_type=dtype)
    return (y if bias is None else y + bias).astype(x.dtype)


def _dot(
    x: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"], apart: bool
) -> Float[Array, "*batch outputs"]:
    return jnp.dot(jax.lax.optimization_barrier(x) if apart else x, weight)


def _dot_forward(x, weight, apart):
    return _dot(x, weight, apart), (x, weight)  # a product that policies of `jax.checkpoint` see


def _dot_backward(apart, residuals, dy):
    x, weight = residuals
    rows = tuple(range(x.ndim - 1))
    return jnp.dot(dy, weight.T), jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


# The gradient in the weight is a product too: JAX's own is one that is transposed, for which XLA copies the gradient of
# all rows on a CPU. Those of products that are apart may be joined.
_rounded_dot = jax.custom_vjp(_dot, nondiff_argnums=(2,))
_rounded_dot.defvjp(_dot_forward, _dot_backward)


def _row(x: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*batch outputs"]:
    """One row on a GPU, in parts: a weight is read once. XLA by itself stores all the products before it adds them."""
    parts = x.reshape(_PARTS, -1, 1), weight.astype(x.dtype).reshape(_PARTS, -1, weight.shape[1])
    row, blocks = map(widened, parts)
    sums = jax.lax.optimization_barrier(jnp.sum(row * blocks, 1))
    return jnp.sum(sums, 0).reshape(*x.shape[:-1], -1)
