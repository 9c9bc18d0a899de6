"""Bodies of the grouped matmul's TPU kernels, and the table of what they visit; `grouped_matmul` calls them.

Each runs for one visit: a tile of rows and one group of those that meet in it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tpu import products

Ref = Any


class Visit(NamedTuple):
    """A grid step."""

    tile: jax.Array
    begin: jax.Array  # the group's first row
    end: jax.Array  # the one behind its last
    has_rows: jax.Array  # whether the group has any in the tile
    is_behind: jax.Array  # whether rows behind the last group are in the tile
    is_first: jax.Array  # whether it is the group's first visit
    is_last: jax.Array

    def inside(self, rows: Ref) -> jax.Array:
        """Which rows of a tile are the group's, bool of the tile's shape."""
        row = self.tile * rows.shape[0] + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return (row >= self.begin) & (row < self.end)

    def put(self, target: Ref, rows: jax.Array) -> None:
        """Stores the group's rows of a tile, and leaves the others."""
        target[...] = jnp.where(self.inside(target), rows.astype(target.dtype), target[...])

    def clear(self, *targets: Ref) -> None:
        """Stores 0 in the rows behind the last group."""

        @pl.when(self.is_behind)
        def _():
            for target in targets:
                self.put(target, jnp.zeros_like(target))


def visits(group_sizes: jax.Array, rows: int, height: int) -> jax.Array:
    """The table of visits: group, tile, first row, end, and 1 for a group's first and 2 for its last; [5, visits].

    Rows behind the last group are one more. A group without rows is visited as well, for its gradient. Steps that are
    left over visit the last tile for no rows.
    """
    groups, tiles = group_sizes.shape[0], -(-rows // height)
    end = jnp.concatenate([jnp.cumsum(group_sizes), jnp.full((1,), rows)]).astype(jnp.int32)
    begin = jnp.concatenate([jnp.zeros((1,), jnp.int32), end[:-1]])
    first = jnp.minimum(begin // height, tiles - 1)
    count = jnp.where(end > begin, (end - 1) // height - first + 1, 1)
    behind = jnp.cumsum(count)
    step = jnp.arange(tiles + 2 * groups + 1, dtype=jnp.int32)
    group = jnp.sum(step[:, None] >= behind, -1, dtype=jnp.int32)
    left_over = group > groups
    group = jnp.minimum(group, groups)
    number = step - (behind - count)[group]
    flags = (number == 0) + 2 * (number == count[group] - 1)
    tile = jnp.where(left_over, tiles - 1, first[group] + number)
    row = jnp.where(left_over, 0, jnp.stack([begin[group], end[group], flags]))
    return jnp.concatenate([jnp.stack([group, tile]), row])


def product(visit: Visit, x: Ref, *refs: Ref) -> None:
    """Products, by weights and then results."""
    weights, ys = refs[: len(refs) // 2], refs[len(refs) // 2 :]

    @pl.when(visit.has_rows)
    def _():
        for w, y in zip(weights, ys, strict=True):
            visit.put(y, products.product(x[...], w[...]))

    visit.clear(*ys)


def row_gradient(visit: Visit, *refs: Ref) -> None:
    """The gradient of x, by gradients of products, their weights, and the result."""
    *operands, dx = refs
    dys, weights = operands[: len(operands) // 2], operands[len(operands) // 2 :]

    @pl.when(visit.has_rows)
    def _():
        each = (products.product(dy[...], w[...], "nt") for dy, w in zip(dys, weights, strict=True))
        visit.put(dx, functools.reduce(jnp.add, each))

    visit.clear(dx)


def weight_gradients(visit: Visit, x: Ref, *refs: Ref) -> None:
    """Gradients of weights, by gradients of products, results and sums."""
    each = len(refs) // 3
    for dy, dw, total in zip(refs[:each], refs[each : 2 * each], refs[2 * each :], strict=True):

        @pl.when(visit.is_first)
        def _(total=total):
            total[...] = jnp.zeros_like(total)

        @pl.when(visit.has_rows)
        def _(dy=dy, total=total):  # what lies behind the last row may be anything
            own, of_dy = (jnp.where(visit.inside(a), a[...], jnp.zeros_like(a)) for a in (x, dy))
            total[...] += products.product(own, of_dy, "tn")

        @pl.when(visit.is_last)
        def _(dw=dw, total=total):
            dw[...] = total[...].astype(dw.dtype)
