"""A model's compiled call, and rows that are read in pieces."""

import jax
import numpy as np
from flax import nnx


def compiled(model):
    """(ids, mask, documents, cache) to the model's output; all but the ids may be left out."""
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, *arguments: nnx.merge(graph, params)(*arguments))
    return lambda ids, mask=None, documents=None, cache=None: run(params, ids, mask, documents, cache)


def in_pieces(call, cache, lengths, *rows):
    """Logits of all tokens of ``rows`` [B, T], so many in each call, and the last cache."""
    logits, begin = [], 0
    for n in lengths:
        out = call(*(row[:, begin : begin + n] for row in rows), cache=cache)
        logits.append(out.logits)
        cache, begin = out.cache, begin + n
    return np.concatenate(logits, 1), cache
