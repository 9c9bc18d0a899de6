"""The product of activations and a weight."""

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import target
from mom_jax.ops.precision import wide, widened
from mom_jax.typing import Array, Float, Shaped

_PARTS = 8  # sums that a GPU adds up side by side for one row


def product(
    x: Float[Array, "*batch inputs"],
    weight: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
    *,
    after: Shaped[Array, "..."] | None = None,
) -> Float[Array, "*batch outputs"]:
    """``x @ weight (+ bias)``; sums in float32 or wider, returns ``x.dtype``.

    A product that is rounded at once is asked for in ``x.dtype``: nothing wider is stored, and gradients meet operands
    of their own dtype. Not so for a single row, which XLA multiplies element by element: it would round each summand.

    ``after``: on a GPU, what is there before the product begins. XLA would join it with an earlier product of x, and
    copy both out of the one that it makes of them. Not so for single tokens: it multiplies their few rows in parts, and
    each product is added up by itself.
    """
    on_gpu = target().platform == "gpu"
    if x.size == x.shape[-1] and on_gpu and weight.shape[0] % _PARTS == 0:
        y = _row(x, weight)
    else:
        weight = _behind(weight, after) if on_gpu and after is not None and x.shape[-2] > 1 else weight
        dtype = wide(x.dtype) if bias is not None or x.size == x.shape[-1] else x.dtype
        weight = weight.astype(x.dtype)
        y = _dot(x, weight) if dtype == x.dtype else jnp.dot(x, weight, preferred_element_type=dtype)
    return (y if bias is None else y + bias).astype(x.dtype)


@jax.custom_vjp
def _behind(weight: Float[Array, "inputs outputs"], first: Shaped[Array, "..."]) -> Float[Array, "inputs outputs"]:
    """The weight, once ``first`` is there; not x, so that the gradients of both weights may be one product."""
    return jax.lax.optimization_barrier((weight, first))[0]


_behind.defvjp(lambda weight, first: (_behind(weight, first), None), lambda _, d: (d, None))


@jax.custom_vjp
def _dot(x: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*batch outputs"]:
    """``x @ weight``, whose gradient in the weight is a product too: JAX's own is one that is transposed, for which XLA
    copies the gradient of all rows on a CPU."""
    return jnp.dot(x, weight)


def _dot_fwd(x, weight):
    return jnp.dot(x, weight), (x, weight)


def _dot_bwd(residuals, dy):
    x, weight = residuals
    rows = tuple(range(x.ndim - 1))
    return jnp.dot(dy, weight.T), jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


_dot.defvjp(_dot_fwd, _dot_bwd)


def _row(x: Float[Array, "*batch inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*batch outputs"]:
    """One row on a GPU, in parts: a weight is read once. XLA by itself stores all the products before it adds them."""
    parts = x.reshape(_PARTS, -1, 1), weight.astype(x.dtype).reshape(_PARTS, -1, weight.shape[1])
    row, blocks = map(widened, parts)
    sums = jax.lax.optimization_barrier(jnp.sum(row * blocks, 1))
    return jnp.sum(sums, 0).reshape(*x.shape[:-1], -1)
