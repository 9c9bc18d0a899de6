"""How packed rows are cut into chunks, as plain arrays, and the error of kernels for rows that they do not support."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Chunks(NamedTuple):
    """Segments and documents of N packed rows in chunks of C rows; each chunk belongs to one segment.

    Segments follow each other in order; those without rows have no chunk, and the unused chunks at
    the end belong to segment S.
    """

    segment: jax.Array  # [chunks] int32, in [0, S]
    first: jax.Array  # [chunks] bool: first chunk of its segment
    last: jax.Array  # [chunks] bool: last chunk of its segment
    runs: jax.Array  # [S + 1, 3] int32: segments with their first and number of chunks, longest first; S the last
    document: jax.Array | None  # [N] int32: documents begun inside the row's chunk up to the row; None: no documents

    def by_chunk(self) -> jax.Array | None:
        """Documents begun up to each row of a chunk, [chunks, 1, C]; None if there are none."""
        return None if self.document is None else self.document.reshape(self.segment.shape[0], 1, -1)

    def where_visited(self, states: jax.Array | None, otherwise: jax.Array | float | None) -> jax.Array | None:
        """States [S, ...] of segments that have a chunk; of the others, which no kernel visits, ``otherwise``.

        None without states. One more behind them, of the unused chunks, is left out.
        """
        if states is None or otherwise is None:
            return None
        segments = self.runs.shape[0] - 1
        visited = jnp.any(self.segment == jnp.arange(segments)[:, None], 1)
        return jnp.where(visited.reshape(-1, *[1] * (states.ndim - 1)), states[:segments], otherwise)


class Unsupported(ValueError):
    """A kernel has no program for these sizes or dtypes, or for the device; other implementations do."""
