"""What memory rules are made of: per-memory projections, short convolutions with state, recurrences with state."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import mixer_init, param
from mom_jax.ops.grouped_matmul import grouped_matmul
from mom_jax.ops.reference_conv_leak import leaking_short_conv
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.short_conv import conv_state, short_conv
from mom_jax.typing import Array, Float, Int

States = Any  # an array [S, ...] or a tuple of them: the state of every segment


def per_memory(rngs: nnx.Rngs, memories: int, inputs: int, outputs: int, split: bool = True) -> nnx.Param:
    """A projection of its own for each of G memories: [G, inputs, outputs], its outputs split over heads or not."""
    return param(rngs, mixer_init, (memories, inputs, outputs), (None, "fsdp", "tensor" if split else None))


def project(
    x: Float[Array, "B T D"], packing: Packing, weights: tuple[Float[Array, "G D F"], ...], impl: str
) -> tuple[Float[Array, "N F"], ...]:
    """Packed rows of ``x`` through each memory's own weights, in ``x.dtype``; G = 1 is one projection for all."""
    weights = tuple(w.astype(x.dtype) for w in weights)
    if weights[0].shape[0] == 1:
        return tuple(pack(jnp.dot(x, w[0]), packing) for w in weights)
    return grouped_matmul(pack(x, packing), weights, packing.group_sizes, tile=packing.table.chunk_size, impl=impl)


def through(
    rows: Float[Array, "N D"], packing: Packing, weight: Float[Array, "G D F"], impl: str
) -> Float[Array, "N F"]:
    """Packed rows through each memory's own further weights."""
    weight = weight.astype(rows.dtype)
    if weight.shape[0] == 1:
        return jnp.dot(rows, weight[0])
    tile = packing.table.chunk_size
    return grouped_matmul(rows, (weight,), packing.group_sizes, tile=tile, impl=impl)[0]


def add_bias(rows: Float[Array, "N F"], packing: Packing, bias: Float[Array, "G F"]) -> Float[Array, "N F"]:
    """Adds each memory's own bias to its rows; float32."""
    if bias.shape[0] == 1:
        return rows + bias
    table = packing.table
    memory = table.segment // (table.num_segments // packing.group_sizes.shape[0])
    return rows + jnp.repeat(bias.at[memory].get(mode="clip"), table.chunk_size, axis=0)


def token_positions(packing: Packing, cache: MemoryCache | None, layer: int | Array) -> Int[Array, " N"]:
    """For each packed row the number of tokens that its batch row has read before; padding does not count."""
    keep = packing.row[..., 0] < packing.assignment.shape[0]
    before = 0 if cache is None else cache.length[layer][:, None]
    position = before + jnp.cumsum(keep, 1, dtype=jnp.int32) - 1
    return position.reshape(-1).at[packing.token].get(mode="clip")


def conv_weight(rngs: nnx.Rngs, channels: int, taps: int, split: bool = True) -> nnx.Param:
    """Filters [channels, taps] of a short convolution, uniform within 1 / sqrt(taps); split over heads or not."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, minval=-(taps**-0.5), maxval=taps**-0.5)

    return param(rngs, init, (channels, taps), ("tensor" if split else None, None))


def log_rates(rngs: nnx.Rngs, heads: int, least: float) -> nnx.Param:
    """``A_log``, one for each head: the logarithm of decay rates that are uniform in [least, 16]."""

    def init(key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, minval=least, maxval=16.0))

    return param(rngs, init, (heads,), ("tensor",))


def time_step_bias(rngs: nnx.Rngs, channels: int) -> nnx.Param:
    """``dt_bias``: the inverse softplus of time steps that are log-uniform in [0.001, 0.1]."""

    def init(key, shape, dtype):
        dt = jnp.exp(jax.random.uniform(key, shape, dtype, minval=math.log(1e-3), maxval=math.log(0.1)))
        return dt + jnp.log(-jnp.expm1(-dt))

    return param(rngs, init, (channels,), ("tensor",))


def conv_history(taps: int | None, **channels: int) -> dict[str, tuple[int, int]]:
    """Inputs that convolutions of ``taps`` taps remember, (W-1, channels) by name; none without taps."""
    return {} if taps is None else {name: (taps - 1, size) for name, size in channels.items()}


def convolve(
    rows: dict[str, Float[Array, "N channels"]],
    weights: dict[str, Float[Array, "channels W"]],
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
    *,
    biases: dict[str, Float[Array, " channels"]] | None = None,
    activate: bool = True,
    leaking_memories: int = 0,
) -> tuple[list[Float[Array, "N channels"]], MemoryCache | None]:
    """Short convolutions by name, along each memory's own sequence; the cache keeps their last inputs.

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


def recur(
    chunked: Callable[[States | None], tuple[Array, States | None]],
    step: Callable[[States], tuple[Array, States]],
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
    """Runs a recurrence over packed rows from the states in the cache, if there is one, and stores the new ones.

    Args:
        chunked: from the states of all segments (None: start empty, keep none) to outputs and new states.
        step: the same for one token in each row, from the states of the rows' own segments: a
            decoding step touches the memories that are written and no others.
    """
    if cache is None:
        return chunked(None)[0], None
    table = packing.table
    if table.chunk_size == 1:  # in place: were the states of all layers reshaped, XLA would copy them at every step
        place = (layer, *jnp.divmod(table.segment, cache.document.shape[-1]))  # memory, batch row
        o, state = step(jax.tree.map(lambda a: _row_states(a, place, table), cache.recurrent))
        recurrent = jax.tree.map(lambda a, b: a.at[place].set(b, mode="drop"), cache.recurrent, state)
    else:
        o, state = chunked(jax.tree.map(lambda a: a[layer].reshape(-1, *a.shape[3:]), cache.recurrent))
        recurrent = jax.tree.map(lambda a, b: a.at[layer].set(b.reshape(a.shape[1:])), cache.recurrent, state)
    return o, dataclasses.replace(cache, recurrent=recurrent)


def _row_states(states, place, table):
    state = states.at[place].get(mode="clip")
    if table.reset is None:
        return state
    return jnp.where(table.reset.reshape(-1, *[1] * (state.ndim - 1)), 0.0, state)
