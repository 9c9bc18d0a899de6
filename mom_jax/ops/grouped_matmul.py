"""Matrix products of contiguous row groups, each with its own weight."""

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Float, Int


@jax.custom_vjp
def grouped_matmul(
    x: Float[Array, "N D"], weights: Float[Array, "G D F"], group_sizes: Int[Array, " G"]
) -> Float[Array, "N F"]:
    """``y[n] = x[n] @ weights[g]`` for the group g that row n falls into.

    Groups follow each other from row 0; rows behind the last group must be 0 and give 0. Cost
    follows the rows, not N * G: on TPU by the native `jax.lax.ragged_dot`, on CPU by a loop
    over row tiles of each group (where ``ragged_dot`` is a dense expansion). Sums in float32,
    returns ``x.dtype``.
    """
    return jax.lax.platform_dependent(x, weights, group_sizes, cpu=_tiled, default=_ragged)


def _forward(x, weights, group_sizes):
    return grouped_matmul(x, weights, group_sizes), (x, weights, group_sizes)


def _backward(residuals, dy):
    x, weights, group_sizes = residuals
    dx = grouped_matmul(dy, jnp.swapaxes(weights, 1, 2), group_sizes)
    dweights = jax.lax.platform_dependent(x, dy, group_sizes, cpu=_tiled_outer, default=_ragged_outer)
    return dx, dweights.astype(weights.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def _ragged(x, weights, group_sizes):
    return jax.lax.ragged_dot(x, weights, group_sizes, preferred_element_type=jnp.float32).astype(x.dtype)


def _ragged_outer(x, dy, group_sizes):
    zeros = jnp.zeros((group_sizes.shape[0], x.shape[1], dy.shape[1]), dy.dtype)
    return jax.vjp(lambda w: jax.lax.ragged_dot(x, w, group_sizes), zeros)[1](dy)[0]


def _tile_rows(rows: int, groups: int) -> int:
    """Largest power of two up to 256 that is not above the mean group; small groups waste no rows."""
    return min(256, 1 << max(0, (rows // groups).bit_length() - 1))


def _each_tile(group_sizes, tile, body, init):
    """Runs ``body(group, first_row, rows_left, carry)`` over the row tiles of every group, in order."""
    ends = jnp.cumsum(group_sizes)
    carry = init
    for group in range(group_sizes.shape[0]):
        begin = ends[group] - group_sizes[group]

        def step(i, carry, group=group, begin=begin):
            first = begin + i * tile
            return body(group, first, ends[group] - first, carry)

        carry = jax.lax.fori_loop(0, -(-group_sizes[group] // tile), step, carry)
    return carry


def _tiled(x, weights, group_sizes):
    rows, tile = x.shape[0], _tile_rows(x.shape[0], weights.shape[0])
    padded = jnp.pad(x, ((0, tile), (0, 0)))

    def body(group, first, _, y):
        # a group's last tile runs into the next group's rows, which that group then overwrites
        product = jnp.dot(
            jax.lax.dynamic_slice_in_dim(padded, first, tile), weights[group], preferred_element_type=jnp.float32
        )
        return jax.lax.dynamic_update_slice_in_dim(y, product.astype(x.dtype), first, 0)

    init = jnp.zeros((rows + tile, weights.shape[2]), x.dtype)
    return _each_tile(group_sizes, tile, body, init)[:rows]


def _tiled_outer(x, dy, group_sizes):
    tile = _tile_rows(x.shape[0], group_sizes.shape[0])
    x, dy = (jnp.pad(a, ((0, tile), (0, 0))) for a in (x, dy))

    def body(group, first, left, dweights):
        x_tile = jax.lax.dynamic_slice_in_dim(x, first, tile)
        x_tile = jnp.where((jnp.arange(tile) < left)[:, None], x_tile, 0)
        dy_tile = jax.lax.dynamic_slice_in_dim(dy, first, tile)
        product = jnp.dot(x_tile.T, dy_tile, preferred_element_type=jnp.float32)
        return dweights.at[group].add(product)

    init = jnp.zeros((group_sizes.shape[0], x.shape[1], dy.shape[1]), jnp.float32)
    return _each_tile(group_sizes, tile, body, init)
