"""Whether parameters are numbers at all: a diverged model loads, scores and generates without an error."""

from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.errors import InputError
from mom_jax.models.structure import dotted
from mom_jax.trace_cache import kept


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def check_finite(params: Any, field: str, place: object, remedy: str) -> None:
    """Checks that no parameter holds NaN or infinity.

    Args:
        params: a tree of floating-point arrays, on any mesh.
        field: what the error names, and its value: where the parameters come from.
        place: see ``field``.
        remedy: what to do.

    Raises:
        InputError: names the first such parameter.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)
    leaves = list(leaves)
    all_finite = kept(_all_finite, "all finite", (leaves,))
    for path, finite in zip(paths, jax.device_get(all_finite(leaves)), strict=True):
        if not finite:
            raise InputError(field, place, f"its parameter {dotted(path)} holds NaN or infinity; {remedy}")
