"""The dtype that recurrences, norms and gates compute in."""

import jax.numpy as jnp

from mom_jax.typing import Array, Shaped


def widened(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """``x`` in float32; float64 stays as it is, so that gradients can be checked by differences."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
