"""Parameters with their place on the mesh, and the bias-free linear map."""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.typing import Array, Float

Initializer = jax.nn.initializers.Initializer
Axis = str | None

_AXES = {"column": ("fsdp", "tensor"), "row": ("tensor", "fsdp"), "replicated": (None, None)}


def param(rngs: nnx.Rngs, init: Initializer, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> nnx.Param:
    """A float32 parameter and the mesh axes (``fsdp``, ``tensor`` or None) that split it."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=axes, eager_sharding=False)


def mixer_init() -> Initializer:
    """Initialisation of the published mixer's linear maps: Xavier uniform with gain 2^-2.5."""
    return jax.nn.initializers.variance_scaling(2.0**-5, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=())


class Linear(nnx.Module):
    """``y = x @ weight`` with ``weight`` [in, out], computed in the dtype of x.

    Args:
        split: ``column`` shards the output over the tensor axis, ``row`` the input,
            ``replicated`` neither.
    """

    def __init__(self, inputs: int, outputs: int, *, split: str, init: Initializer, rngs: nnx.Rngs):
        self.weight = param(rngs, init, (inputs, outputs), _AXES[split])

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applies the map; sums in float32, returns ``x.dtype``."""
        weight = self.weight[...].astype(x.dtype)
        return jnp.dot(x, weight, preferred_element_type=jnp.float32).astype(x.dtype)
