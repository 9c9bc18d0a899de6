"""Several rows of a recurrence for each token: rows become sub-rows, and a chunk as many chunks."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Shaped


def sub_rows(x: Shaped[Array, "N H steps *rest"]) -> Shaped[Array, "sub H *rest"]:
    """The steps of a token as rows of their own, in order."""
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(-1, *x.shape[2:])


def only_at(x: Shaped[Array, "N *rest"], place: int, steps: int) -> Shaped[Array, "sub *rest"]:
    """A token's value in one of its sub-rows, 0 in the others."""
    among = jnp.zeros((x.shape[0], steps, *x.shape[1:]), x.dtype).at[:, place].set(x)
    return among.reshape(-1, *x.shape[1:])


def sub_table(table: ChunkTable, steps: int) -> Any:
    """The `ChunkTable` of sub-rows: as many rows in a chunk as before, and ``steps`` chunks for each."""
    repeated = jnp.repeat(table.segment, steps)
    return dataclasses.replace(
        table,
        segment=repeated,
        first=only_at(table.first, 0, steps),
        last=only_at(table.last, steps - 1, steps),
        count=steps * table.count,
        reset=None if table.reset is None else only_at(table.reset, 0, steps),
    )
