"""Short convolutions and token shift along each memory's own sequence, with what they remember in the cache."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache, state_number, states_after, states_before
from mom_jax.layers.linear import param
from mom_jax.ops.dispatch import Target, kernel_for, on_gpu, select
from mom_jax.ops.halo import inputs_before
from mom_jax.ops.reference_conv_leak import leaking_short_conv
from mom_jax.ops.segments import Packing
from mom_jax.ops.short_conv import STEP_KERNELS, conv_state, short_conv, short_conv_step
from mom_jax.typing import Array, Float


def conv_weight(rngs: nnx.Rngs, channels: int, taps: int, split: bool = True) -> nnx.Param:
    """Filters [channels, taps] of a short convolution, uniform within 1 / sqrt(taps); split over heads or not."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, minval=-(taps**-0.5), maxval=taps**-0.5)

    return param(rngs, init, (channels, taps), ("tensor" if split else None, None))


def convolve(
    rows: dict[str, Float[Array, "..."]],
    weights: dict[str, Float[Array, "_ W"]],
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
    *,
    biases: dict[str, Float[Array, " _"]] | None = None,
    activate: bool = True,
    heads: dict[str, int] | None = None,
    normalise: tuple[str, ...] = (),
    impl: str = "auto",
    leaking_memories: int = 0,
) -> tuple[list[Float[Array, "N _"]], MemoryCache | None]:
    """Short convolutions by name, along each memory's own sequence, each with its channels; the cache keeps inputs.

    Args:
        rows: packed rows [N, channels], or the tokens [B, T, channels] whose copies they are.
        weights: their filters.
        packing: of the rows.
        cache: with what came before, read and written at ``layer``; None: nothing did, or other devices have it.
        biases: of those that have one.
        activate: SiLU after them.
        heads: channels of a head, where there are heads.
        normalise: whose heads are normalised by their L2 norms at last.
        impl: of `mom_jax.ops.short_conv.short_conv`.
        leaking_memories: without a cache, memories that are convolved end to end (`mom_jax.ops.reference_conv_leak`).

    Returns:
        The rows in their order, and the new cache.
    """
    outputs, stored = [], {} if cache is None else dict(cache.conv)
    for name, x in rows.items():
        bias, head = (None if of is None else of.get(name) for of in (biases, heads))
        options = {"head": head, "normalise": name in normalise}
        if cache is None and leaking_memories:
            outputs.append(leaking_short_conv(x, weights[name], packing, leaking_memories, **options))
            continue
        options |= {"bias": bias, "activate": activate}
        if cache is not None and packing.table.chunk_size == 1:
            y, stored[name] = _one_token(x, weights[name], packing, cache.conv[name], layer, impl, options)
            outputs.append(y)
            continue
        state = None if packing.piece is None else inputs_before(x, packing, weights[name].shape[1] - 1)
        if cache is not None:
            layers = cache.conv[name]
            state = layers[layer].reshape(-1, *layers.shape[3:])
            stored[name] = layers.at[layer].set(conv_state(x, packing, state).reshape(layers.shape[1:]))
        outputs.append(short_conv(x, weights[name], packing, state, impl=impl, **options))
    return outputs, None if cache is None else dataclasses.replace(cache, conv=stored)


def _one_token(
    x: Float[Array, "..."],
    weight: Float[Array, "D W"],
    packing: Packing,
    states: Float[Array, "L G B W-1 D"],
    layer: int | Array,
    impl: str,
    options: dict[str, Any],
) -> tuple[Float[Array, "N D"], Float[Array, "L G B W-1 D"]]:
    """Rows of one token, and the last inputs of every memory and batch row, of which each moves its own on by one."""
    table = packing.table

    def by_xla() -> tuple[Array, Array]:
        y, after = short_conv_step(x, weight, packing, states_before(states, layer, table), **options)
        return y, states_after(states, layer, table, after)

    def by_kernel(device: Target) -> tuple[Array, Array]:
        token, place = packing.token if x.ndim == 3 else None, state_number(layer, table)
        form = (options[name] for name in ("activate", "head", "normalise"))
        flat = x.reshape(-1, x.shape[-1])
        return kernel_for(device, STEP_KERNELS)(flat, weight, options["bias"], states, token, place, table.reset, *form)

    name = impl if on_gpu(impl) else "xla"
    return select(name, {"xla": by_xla}, {"gpu": by_kernel})()


def token_before(
    rows: Float[Array, "N D"], packing: Packing, cache: MemoryCache | None, layer: int | Array, impl: str
) -> tuple[Float[Array, "N D"], MemoryCache | None]:
    """The row that the same memory saw one token before, 0 at the first; the cache keeps the last one as ``x``."""
    taps = jnp.broadcast_to(jnp.array([1.0, 0.0]), (rows.shape[-1], 2))
    (before,), cache = convolve({"x": rows}, {"x": taps}, packing, cache, layer, activate=False, impl=impl)
    return before, cache
