"""Memory layout of rows, gates and chunks for the TPU kernels, and their blocks.

Every kernel runs on a grid (heads / MB, chunks). The chunks of a block of MB heads follow each other
and keep a state in VMEM; a table of one int32 for each chunk says where a segment loads and stores it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.chunks import Chunks


def heads_first(x: jax.Array) -> jax.Array:
    """Rows [N, H, K] as [H, N, K]."""
    return jnp.swapaxes(x, 0, 1)


rows_first = heads_first  # its own inverse


def pack_gates(x: jax.Array, chunk: int) -> jax.Array:
    """[N, H] as float32 [H, chunks, 1, C]: [H, N, 1] would fill one lane of 128."""
    return x.T.astype(jnp.float32).reshape(x.shape[1], -1, 1, chunk)


def unpack_gates(x: jax.Array) -> jax.Array:
    """The inverse of `pack_gates`."""
    return x.reshape(x.shape[0], -1).T


def pack_table(chunks: Chunks) -> jax.Array:
    """Segments and flags in one int32 for each chunk."""
    return chunks.segment * 4 + chunks.first.astype(jnp.int32) * 2 + chunks.last.astype(jnp.int32)


def segment_of(entry: jax.Array) -> jax.Array:
    """The segment of a chunk, S for an unused one."""
    return entry >> 2


def is_first(entry: jax.Array) -> jax.Array:
    """Whether the chunk is its segment's first."""
    return (entry & 2) != 0


def is_last(entry: jax.Array) -> jax.Array:
    """Whether the chunk is its segment's last."""
    return (entry & 1) != 0


class Blocks(NamedTuple):
    """Block specifications of a kernel on the grid (H / MB, chunks).

    In a ``reverse`` kernel the last chunk comes first; `place` tells its body which chunk it has.
    """

    heads: int  # MB
    size: int  # C
    chunks: int
    reverse: bool = False

    def place(self, step):
        """The chunk of a grid step."""
        return self.chunks - 1 - step if self.reverse else step

    def rows(self, channels: int) -> pl.BlockSpec:
        """Of rows [H, N, channels]."""
        return pl.BlockSpec((self.heads, self.size, channels), lambda h, c, table: (h, self.place(c), 0))

    def gates(self) -> pl.BlockSpec:
        """Of gates [H, chunks, 1, C]."""
        return pl.BlockSpec((self.heads, None, 1, self.size), lambda h, c, table: (h, self.place(c), 0, 0))

    def documents(self) -> pl.BlockSpec:
        """Of documents [chunks, 1, C]."""
        return pl.BlockSpec((None, 1, self.size), lambda h, c, table: (self.place(c), 0, 0))

    def per_chunk(self, *shape: int) -> pl.BlockSpec:
        """Of what each chunk has one of, [H, chunks, *shape]."""
        zeros = (0,) * len(shape)
        return pl.BlockSpec((self.heads, None, *shape), lambda h, c, table: (h, self.place(c), *zeros))

    def loaded(self, segments: int, *shape: int) -> pl.BlockSpec:
        """Of states [S, H, *shape] that segments load; unused chunks name the last one and load nothing."""
        zeros = (0,) * len(shape)

        def index(h, c, table):
            return jnp.minimum(segment_of(table[self.place(c)]), segments - 1), h, *zeros

        return pl.BlockSpec((None, self.heads, *shape), index)

    def stored(self, *shape: int) -> pl.BlockSpec:
        """Of states [S + 1, H, *shape] that segments store; the last is that of unused chunks."""
        zeros = (0,) * len(shape)
        return pl.BlockSpec(
            (None, self.heads, *shape), lambda h, c, table: (segment_of(table[self.place(c)]), h, *zeros)
        )
