"""Rotary position embedding (RoFormer, arXiv 2104.09864, equation 34)."""

import jax.numpy as jnp

from mom_jax.typing import Array, Float, Int


def rotary(x: Float[Array, "B T H K"], position: Int[Array, "B T"], theta: float) -> Float[Array, "B T H K"]:
    """Turns channel i and channel i + K/2 of every head by ``position * theta^(-2i/K)``.

    Computed in float32; returns ``x.dtype``.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[..., None, None].astype(jnp.float32) * frequency
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
