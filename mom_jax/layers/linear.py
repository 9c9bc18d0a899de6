"""Parameters with their place on the mesh, and the linear map."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mom_jax.ops.product import product
from mom_jax.typing import Array, Float

Initializer = Callable[..., Array]  # (key, shape, dtype) -> values
Axis = str | None
AnyModule = TypeVar("AnyModule", bound=nnx.Module)

_AXES = {
    "column": ("fsdp", "tensor"),
    "row": ("tensor", "fsdp"),
    "whole": ("fsdp", None),
    "replicated": (None, None),
}


def param(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    *,
    decays: bool = True,
    rounds: bool = False,
) -> nnx.Param:
    """A float32 parameter.

    Args:
        rngs, init, shape: of its initial values.
        axes: of the mesh that split it (``fsdp``, ``tensor`` or None).
        decays: weight decay applies.
        rounds: every use rounds it to the dtype of activations first.
    """
    value = init(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, out_sharding=axes, eager_sharding=False, decays=decays, rounds=rounds)


def rounded(module: AnyModule, dtype: DTypeLike) -> AnyModule:
    """The module with the parameters that every use rounds (`param`) held in ``dtype``."""
    graph, params = nnx.split(module)

    def held(variable: nnx.Variable) -> nnx.Variable:
        rounds = variable.get_metadata("rounds", False)
        return variable.replace(variable[...].astype(dtype)) if rounds else variable

    return nnx.merge(graph, jax.tree.map(held, params, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def mixer_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Initialisation of the published mixer's linear maps [..., in, out]: Xavier uniform with gain 2^-2.5."""
    bound = 2.0**-2.5 * math.sqrt(6 / (shape[-2] + shape[-1]))
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)


class Linear(nnx.Module):
    """``y = x @ weight (+ bias)`` with ``weight`` [in, out], computed in the dtype of x.

    Args:
        split: ``column`` shards the output over the tensor axis, ``row`` the input, ``whole`` and
            ``replicated`` neither; all but ``replicated`` shard the other one over the fsdp axis.
        bias: add a bias, initially 0.
        rounds: x is as wide as activations, so the weight may be rounded beforehand.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        split: str,
        init: Initializer,
        bias: bool = False,
        rounds: bool = True,
        rngs: nnx.Rngs,
    ):
        self.weight = param(rngs, init, (inputs, outputs), _AXES[split], rounds=rounds)
        if bias:
            self.bias = param(rngs, jax.nn.initializers.zeros, (outputs,), _AXES[split][1:])
        self.has_bias = bias

    def __call__(self, x: Float[Array, "*batch inputs"], *, apart: bool = False) -> Float[Array, "*batch outputs"]:
        """Applies the map, ``apart`` from others (`mom_jax.ops.product.product`); returns ``x.dtype``."""
        return product(x, self.weight[...], self.bias[...] if self.has_bias else None, apart=apart)
