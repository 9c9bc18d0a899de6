"""Packed rows laid out by hand, for operators that take them; no code of the library computes anything here."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mom_jax.ops.segments import ChunkTable, Packing


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tokens of ragged segments lie: each segment begins at a multiple of the chunk size."""

    lengths: tuple[int, ...]
    chunk: int
    spare_chunks: int = 1  # unused chunks behind the last segment

    @property
    def starts(self) -> list[int]:
        """First row of each segment."""
        starts, row = [], 0
        for length in self.lengths:
            starts.append(row)
            row += -(-length // self.chunk) * self.chunk
        return starts

    @property
    def rows(self) -> int:
        """Packed rows N."""
        return sum(-(-n // self.chunk) for n in (*self.lengths, self.spare_chunks * self.chunk)) * self.chunk

    @property
    def index(self) -> np.ndarray:
        """The packed row of every token, segment after segment."""
        places = [start + i for start, n in zip(self.starts, self.lengths, strict=True) for i in range(n)]
        return np.array(places, np.int64)

    def pack(self, x) -> jnp.ndarray:
        """[tokens, ...] to packed rows; padding is 0."""
        if isinstance(x, np.ndarray):  # no program is compiled for it
            rows = np.zeros((self.rows, *x.shape[1:]), x.dtype)
            rows[self.index] = x
            return jnp.asarray(rows)
        return jnp.zeros((self.rows, *x.shape[1:]), x.dtype).at[self.index].set(x)

    def table(self, resets: Sequence[int] | None = None) -> ChunkTable:
        """The chunk table; ``resets`` are token numbers that begin a new document."""
        segment, first, last = [], [], []
        for s, length in enumerate(self.lengths):
            chunks = -(-length // self.chunk)
            segment += [s] * chunks
            first += [i == 0 for i in range(chunks)]
            last += [i == chunks - 1 for i in range(chunks)]
        unused = self.rows // self.chunk - len(segment)
        reset = None
        if resets is not None:
            flags = np.zeros(self.rows, bool)
            flags[self.index[list(resets)]] = True
            reset = jnp.asarray(flags)
        return ChunkTable(
            segment=jnp.array(segment + [len(self.lengths)] * unused, jnp.int32),
            first=jnp.array(first + [False] * unused),
            last=jnp.array(last + [False] * unused),
            count=jnp.array([segment.count(s) for s in range(len(self.lengths))], jnp.int32),
            reset=reset,
            chunk_size=self.chunk,
            num_segments=len(self.lengths),
        )

    def packing(self, resets: Sequence[int] | None = None) -> Packing:
        """A packing in which every segment is one batch row with its own memory (for the convolution)."""
        tokens = sum(self.lengths)
        assignment = np.full(self.rows, tokens, np.int32)
        assignment[self.index] = np.arange(tokens)
        position = np.arange(self.rows)
        for start, length in zip(self.starts, self.lengths, strict=True):
            position[start:] = np.arange(self.rows - start) if length else position[start:]
        return Packing(
            row=jnp.asarray(self.index, jnp.int32).reshape(1, tokens, 1),
            assignment=jnp.asarray(assignment),
            start=jnp.array(self.starts, jnp.int32),
            length=jnp.array(self.lengths, jnp.int32),
            position=jnp.asarray(position, jnp.int32),
            group_sizes=jnp.array([-(-n // self.chunk) * self.chunk for n in self.lengths], jnp.int32),
            table=self.table(resets),
        )
