"""The short convolution as the PyTorch reference computes it in training: blind to where a memory's sequence begins.

Only for reproducing curves that were trained that way: outputs depend on later tokens and on other
rows of the batch.
"""

import jax
import jax.numpy as jnp

from mom_jax.ops.norm import l2_norm_of_heads
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float


def leaking_short_conv(
    x: Float[Array, "N D"] | Float[Array, "B T D"],
    weight: Float[Array, "D W"],
    packing: Packing,
    routed_memories: int,
    *,
    head: int | None = None,
    normalise: bool = False,
) -> Float[Array, "N D"]:
    """As `mom_jax.ops.short_conv.short_conv`, but over the routed memories' sequences end to end.

    The sequences follow each other memory by memory and row by row; the first tokens of each
    read the last tokens of the one before. The shared memory, which comes after the first
    ``routed_memories`` memories, is convolved row by row. Returns ``x.dtype``.
    """
    x = pack(x, packing) if x.ndim == 3 else x
    rows, taps = x.shape[0], weight.shape[-1]
    memories = packing.group_sizes.shape[0]
    first_of_segment = jnp.cumsum(packing.length) - packing.length  # in the list of all tokens without gaps
    segment = jnp.repeat(packing.table.segment, packing.table.chunk_size)
    begin = first_of_segment.at[segment].get(mode="clip")
    place = begin + packing.position
    row_at = jnp.full(rows, rows).at[jnp.where(packing.valid, place, rows)].set(jnp.arange(rows), mode="drop")
    floor = jnp.where(segment < routed_memories * (packing.length.shape[0] // memories), 0, begin)
    y = 0.0
    for w in range(taps):
        source = jnp.where(place - w >= floor, row_at.at[place - w].get(mode="clip"), rows)
        y += widened(x.at[source].get(mode="fill", fill_value=0)) * weight[:, taps - 1 - w]
    y = jax.nn.silu(y).astype(x.dtype)
    return l2_norm_of_heads(y, head or y.shape[1]) if normalise else y
