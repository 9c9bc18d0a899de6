"""The dtype that sums, recurrences, norms and gates are computed in."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from mom_jax.typing import Array, Shaped


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype to sum values of ``dtype`` in: float32, or float64, so that gradients can be checked by differences."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """``x`` in the dtype to sum in."""
    return x.astype(wide(x.dtype))
