"""Prepared shards as a test reads them."""

from collections.abc import Iterator

import numpy as np

from mom_jax.data.shards import TokenStream


def documents_of(stream: TokenStream) -> Iterator[np.ndarray]:
    """Each document's token ids with its end token."""
    for shard in stream.shards:
        for start, stop in zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True):
            yield shard.tokens[start:stop]
