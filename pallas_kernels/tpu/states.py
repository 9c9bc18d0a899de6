"""The state of a segment inside a TPU kernel: it stays in VMEM from the segment's first chunk to its last.

In reverse the last chunk comes first, and the state is its gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tpu.layout import Blocks, is_first, is_last

Ref = Any


def load_state(table: Ref, blocks: Blocks, source: Ref | None, state: Ref) -> jax.Array:
    """Loads the state where a segment begins, from 0 without a source; returns the chunk's entry of the table.

    Unused chunks have a state as well: it begins with 0 to stay finite.
    """
    step = pl.program_id(1)
    entry = table[blocks.place(step)]

    @pl.when(step == 0)
    def _():
        state[...] = jnp.zeros_like(state)

    @pl.when(is_last(entry) if blocks.reverse else is_first(entry))
    def _():
        state[...] = jnp.zeros_like(state) if source is None else source[...].astype(jnp.float32)

    return entry


def store_state(entry: jax.Array, blocks: Blocks, target: Ref | None, state: Ref) -> None:
    """Stores the state where a segment ends."""
    if target is None:
        return

    @pl.when(is_first(entry) if blocks.reverse else is_last(entry))
    def _():
        target[...] = state[...]
