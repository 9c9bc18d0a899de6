"""Memories chosen without a router, to see what a router's choice is worth."""

import jax.numpy as jnp

from mom_jax.typing import Array, Int, Shaped


def fixed_choice(base: Int[Array, "B T"], top_k: int, memories: int) -> Int[Array, "B T {top_k}"]:
    """The k memories that follow each other from ``base`` on, counted modulo M."""
    return (base[..., None] + jnp.arange(top_k)) % memories


def hashed(tokens: Shaped[Array, "B T"]) -> Int[Array, "B T"]:
    """A number in [0, 65536) for each token id, by multiplication (Knuth, The Art of Computer Programming 3, 6.4)."""
    return ((tokens.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 16).astype(jnp.int32)
