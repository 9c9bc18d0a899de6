"""Short convolutions and token shift along each memory's own sequence, with what they remember in the cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.ops.reference_conv_leak import leaking_short_conv
from mom_jax.ops.segments import Packing
from mom_jax.ops.short_conv import conv_state, short_conv
from mom_jax.typing import Array, Float


def conv_weight(rngs: nnx.Rngs, channels: int, taps: int, split: bool = True) -> nnx.Param:
    """Filters [channels, taps] of a short convolution, uniform within 1 / sqrt(taps); split over heads or not."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, minval=-(taps**-0.5), maxval=taps**-0.5)

    return param(rngs, init, (channels, taps), ("tensor" if split else None, None))


def conv_history(taps: int | None, **channels: int) -> dict[str, tuple[int, int]]:
    """Inputs that convolutions of ``taps`` taps remember, (W-1, channels) by name; none without taps."""
    return {} if taps is None else {name: (taps - 1, size) for name, size in channels.items()}


def convolve(
    rows: dict[str, Float[Array, "N _"]],
    weights: dict[str, Float[Array, "_ W"]],
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
    *,
    biases: dict[str, Float[Array, " _"]] | None = None,
    activate: bool = True,
    leaking_memories: int = 0,
) -> tuple[list[Float[Array, "N _"]], MemoryCache | None]:
    """Short convolutions by name, along each memory's own sequence, each with its channels; the cache keeps inputs.

    ``activate``: SiLU after them. Without a cache, ``leaking_memories`` memories are convolved end
    to end (`mom_jax.ops.reference_conv_leak`).
    """
    filtered = functools.partial(short_conv, activate=activate)
    bias = biases or {}
    if cache is None and leaking_memories:
        return [leaking_short_conv(y, weights[name], packing, leaking_memories) for name, y in rows.items()], None
    if cache is None:
        return [filtered(y, weights[name], packing, None, bias.get(name)) for name, y in rows.items()], None
    outputs, stored = [], dict(cache.conv)
    for name, y in rows.items():
        state = cache.conv[name][layer]
        flat = state.reshape(-1, *state.shape[2:])
        outputs.append(filtered(y, weights[name], packing, flat, bias.get(name)))
        stored[name] = cache.conv[name].at[layer].set(conv_state(y, packing, flat).reshape(state.shape))
    return outputs, dataclasses.replace(cache, conv=stored)


def token_before(
    rows: Float[Array, "N D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
) -> tuple[Float[Array, "N D"], MemoryCache | None]:
    """The row that the same memory saw one token before, 0 at the first; the cache keeps the last one as ``x``."""
    taps = jnp.broadcast_to(jnp.array([1.0, 0.0]), (rows.shape[-1], 2))
    (before,), cache = convolve({"x": rows}, {"x": taps}, packing, cache, layer, activate=False)
    return before, cache
