"""Projections that each memory has for itself, and the parameters of gates."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.linear import mixer_init, param
from mom_jax.ops.grouped_matmul import grouped_matmul, token_matmul
from mom_jax.ops.precision import widened
from mom_jax.ops.product import product
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float
from pallas_kernels.remat import PROJECTION, keep


def per_memory(rngs: nnx.Rngs, memories: int, inputs: int, outputs: int, split: bool = True) -> nnx.Param:
    """A projection of its own for each of G memories: [G, inputs, outputs], its outputs split over heads or not."""
    axes = (None, "fsdp", "tensor" if split else None)
    return param(rngs, mixer_init, (memories, inputs, outputs), axes, rounds=True)


def project(
    x: Float[Array, "B T D"],
    packing: Packing,
    weights: tuple[Float[Array, "#G D _"], ...],
    impl: str,
    then: Callable[..., Any] = lambda *products: products,
) -> Any:
    """Packed rows of ``x`` through each memory's own weights, in ``x.dtype``; G = 1 is one projection for all.

    ``then`` makes of a token's products what is wanted of it, a pytree: before they are packed where that is possible.
    """
    weights = tuple(w.astype(x.dtype) for w in weights)
    if weights[0].shape[0] == 1:
        wanted = then(*(keep(product(x, w[0]), PROJECTION) for w in weights))
        return jax.tree.map(lambda y: pack(y, packing), wanted)
    return then(*keep(token_matmul(x, weights, packing, impl=impl), PROJECTION))


def through(
    rows: Float[Array, "N D"], packing: Packing, weight: Float[Array, "#G D F"], impl: str
) -> Float[Array, "N F"]:
    """Packed rows through further weights of each memory's own."""
    weight = weight.astype(rows.dtype)
    if weight.shape[0] == 1:
        return keep(product(rows, weight[0]), PROJECTION)
    tile = packing.table.chunk_size
    return keep(grouped_matmul(rows, (weight,), packing.group_sizes, tile=tile, impl=impl)[0], PROJECTION)


def add_bias(rows: Float[Array, "N F"], packing: Packing, bias: Float[Array, "#G F"]) -> Float[Array, "N F"]:
    """Adds each memory's own bias to its rows; float32."""
    if bias.shape[0] == 1:
        return rows + bias
    return rows + of_memories(bias, packing)


def of_memories(values: Float[Array, "G *rest"], packing: Packing) -> Float[Array, "N *rest"]:
    """What belongs to the memory of each row."""
    table = packing.table
    memory = table.segment // (table.num_segments // packing.group_sizes.shape[0])
    return jnp.repeat(values.at[memory].get(mode="clip"), table.chunk_size, axis=0)


def log_rates(rngs: nnx.Rngs, heads: int, least: float) -> nnx.Param:
    """``A_log``, one for each head: the logarithm of decay rates that are uniform in [least, 16]."""

    def init(key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, minval=least, maxval=16.0))

    return param(rngs, init, (heads,), ("tensor",), decays=False)


def head_log_decay(
    logits: Float[Array, "N H"], A_log: Float[Array, " H"], dt_bias: Float[Array, " H"]
) -> Float[Array, "N H"]:
    """Log decays ``-exp(A_log) softplus(logits + dt_bias)``, in float32 or wider."""
    return -jnp.exp(A_log) * jax.nn.softplus(widened(logits) + dt_bias)


def time_step_bias(rngs: nnx.Rngs, channels: int) -> nnx.Param:
    """``dt_bias``: the inverse softplus of time steps that are log-uniform in [0.001, 0.1]."""

    def init(key, shape, dtype):
        dt = jnp.exp(jax.random.uniform(key, shape, dtype, minval=math.log(1e-3), maxval=math.log(0.1)))
        return dt + jnp.log(-jnp.expm1(-dt))

    return param(rngs, init, (channels,), ("tensor",), decays=False)
