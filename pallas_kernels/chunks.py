"""How packed rows are cut into chunks, as plain arrays, and the error of kernels for rows that they do not support."""

from typing import NamedTuple

import jax


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


class Unsupported(ValueError):
    """A kernel has no program for these sizes or dtypes, or for the device; other implementations do."""
