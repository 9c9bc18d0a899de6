"""Inverse of unit lower triangular matrices, the only solve in the delta rule."""

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Float

_BLOCK = 16


def unit_lower_inverse(strict: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
    """``(I + strict)^-1`` for strictly lower triangular float32 matrices, C a power of two.

    Blocks of 16 are inverted by exact forward substitution, then merged pairwise until one is
    left. The doubling series over the whole matrix would be cheaper, but it overflows when
    keys are correlated, where this form keeps float32 accuracy.
    """
    size = strict.shape[-1]
    block = min(size, _BLOCK)
    inverse = _substitute(diagonal_blocks(strict, block))
    while block < size:
        off = diagonal_blocks(strict, 2 * block)[..., block:, :block]
        upper, lower = paired(inverse)
        corner = -(lower @ (off @ upper))
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], -1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], -1)], -2)
        block *= 2
    return inverse[..., 0, :, :]


def diagonal_blocks(x: Float[Array, "*batch C C"], block: int) -> Float[Array, "*batch blocks {block} {block}"]:
    """The square blocks along the diagonal, C // block of them."""
    count = x.shape[-1] // block
    tiles = x.reshape(*x.shape[:-2], count, block, count, block)
    return jnp.stack([tiles[..., i, :, i, :] for i in range(count)], -3)


def paired(
    x: Float[Array, "*batch blocks b K"],
) -> tuple[Float[Array, "*batch blocks//2 b K"], Float[Array, "*batch blocks//2 b K"]]:
    """The first and the second of each two blocks. (Slices with strides are too much for libtpu 0.0.48 at times.)"""
    x = x.reshape(*x.shape[:-3], -1, 2, *x.shape[-2:])
    return x[..., 0, :, :], x[..., 1, :, :]


def _substitute(strict: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
    """Row i of the inverse is ``e_i - strict[i] @ inverse``, which needs the rows above alone."""
    identity = jnp.eye(strict.shape[-1], dtype=strict.dtype)

    def row(i, inverse):
        weights = jax.lax.dynamic_index_in_dim(strict, i, -2, keepdims=False)
        solved = identity[i] - jnp.einsum("...j,...jk->...k", weights, inverse)
        return jax.lax.dynamic_update_index_in_dim(inverse, solved, i, -2)

    return jax.lax.fori_loop(1, strict.shape[-1], row, jnp.broadcast_to(identity, strict.shape))
