"""From what one or several routers decide to a token's rows: where it goes, what it writes there and what it reads.

A token has one row in each memory that any of its routers chose. Where one router decides for all heads, and for
writing as for reading, each row writes and is read. Otherwise each head writes to the row only if its own router
chose the memory, and reads it with its own weight, 0 for one: the row of the others is there, but does nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.precision import widened
from mom_jax.ops.routing import chosen_memories
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float, Int


class Assignment(NamedTuple):
    """The rows of a token, one for each place; with a last axis of heads where these have routers of their own."""

    memory_ids: Int[Array, "B T places"]  # distinct; -1: no row
    weights: Float[Array, "B T places"] | Float[Array, "B T places H"]  # of what is read
    writes: Float[Array, "B T places"] | Float[Array, "B T places H"] | None  # 1 or 0; None: every row writes


def assign(
    weights: Float[Array, "R B T k"], memory_ids: Int[Array, "R B T k"], memories: int, kinds: int
) -> Assignment:
    """The rows of tokens of which R routers decide.

    Args:
        weights, memory_ids: what each router decides; those of heads follow each other.
        memories: M.
        kinds: 1, or 2 if the first half of the routers decides what is written and the second what is read. Writes
            are whole, and pass the first half the gradient of writing as strongly as it scores ("straight through").
    """
    routers, choices = memory_ids.shape[0], memory_ids.shape[-1]
    if routers == 1:
        return Assignment(memory_ids[0], weights[0], None)
    hits = chosen_memories(memory_ids, memories)  # [R, B, T, M]
    places = _places(hits.any(0), min(memories, routers * choices))
    written, read = (_at(x, places) for x in _ends(_spread(weights, memory_ids, memories), kinds))
    writes = _at(_ends(hits, kinds)[0].astype(weights.dtype), places)
    if kinds == 2:
        writes += written - jax.lax.stop_gradient(written)
    heads = routers // kinds
    return Assignment(places, *((x[..., 0] if heads == 1 else x) for x in (read, writes)))


def by_row(values: Float[Array, "B T places *heads"], packing: Packing) -> Float[Array, "N *heads"]:
    """What belongs to each row of a token's places, 1 for the shared memory's; 0 for padding rows."""
    values = with_shared(values, packing)
    return values.reshape(-1, *values.shape[3:]).at[packing.assignment].get(mode="fill", fill_value=0)


def with_shared(values: Float[Array, "B T places *heads"], packing: Packing) -> Float[Array, "B T A *heads"]:
    """Values of a token's places, and 1 for the shared memory if there is one."""
    missing = packing.row.shape[-1] - values.shape[2]
    return jnp.pad(values, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (values.ndim - 3)], constant_values=1)


def read_energy(
    o: Float[Array, "N H V"], weights: Float[Array, "B T places *heads"], packing: Packing
) -> Float[Array, "1 B G"]:
    """The squared norm of what each memory adds to the reads of a row's tokens, for telemetry: without a gradient."""
    o, weights = jax.lax.stop_gradient((o, weights))
    weight = by_row(weights, packing)
    squares = jnp.sum(widened(o) ** 2, -1) * (weight if weight.ndim == 2 else weight[:, None]) ** 2
    table = packing.table
    of_chunks = squares.reshape(table.segment.shape[0], -1).sum(-1)
    of_segments = jnp.zeros(table.num_segments, of_chunks.dtype).at[table.segment].add(of_chunks, mode="drop")
    return of_segments.reshape(-1, packing.row.shape[0]).T[None]


def _places(hits: Array, count: int) -> Int[Array, "B T places"]:
    """The memories that are hit, lowest first, then -1."""
    there, ids = jax.lax.top_k(hits.astype(jnp.int32), count)
    return jnp.where(there > 0, ids, -1)


def _spread(weights: Float[Array, "R B T k"], ids: Int[Array, "R B T k"], memories: int) -> Float[Array, "R B T M"]:
    """Weights at their memories, 0 at the others."""
    is_there = ids[..., None] == jnp.arange(memories)
    return jnp.where(is_there, weights[..., None], 0).sum(-2)


def _ends(x: Array, kinds: int) -> tuple[Array, Array]:
    """Of what is written and of what is read: [R / kinds, ...] each."""
    parts = jnp.split(x, kinds)
    return parts[0], parts[-1]


def _at(x: Float[Array, "heads B T M"], places: Int[Array, "B T places"]) -> Float[Array, "B T places heads"]:
    """Values at a token's places, by comparing, so that the gradient is no scatter."""
    is_there = places[..., None] == jnp.arange(x.shape[-1])  # [B, T, A, M]
    return jnp.where(is_there[..., None], jnp.moveaxis(x, 0, -1)[:, :, None], 0).sum(-2)
