"""Rotary position embedding (RoFormer, arXiv 2104.09864, equation 34)."""

import jax.numpy as jnp

from mom_jax.ops.precision import wide
from mom_jax.typing import Array, Float, Int


def rotary(x: Float[Array, "B T H K"], position: Int[Array, "B T"], theta: float) -> Float[Array, "B T H K"]:
    """Turns channel i and channel i + K/2 of every head by ``position * theta^(-2i/K)``.

    Computed in float32 or wider; returns ``x.dtype``.
    """
    half, dtype = x.shape[-1] // 2, wide(x.dtype)
    frequency = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle = position[..., None, None].astype(dtype) * frequency
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
