"""What more history is worth: the same bytes, told after more and more of what stands before them; no experiment.

Windows of other lengths hold other bytes, or the same ones in other places, so their losses differ for reasons of
their own. Here the last bytes of long passages are scored, and nothing changes but where reading begins.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mom_jax.data.prepare import prepared
from mom_jax.data.shards import TokenStream
from mom_jax.runs import one_device, opened_run

_ROWS = 4  # read together


def history_bits(run_dir: str, lengths: Sequence[int], scored: int) -> list[float]:
    """Bits per byte of the last bytes of held-out passages as long as the longest of ``lengths``.

    Args:
        run_dir: a run whose tokens are bytes.
        lengths: how much is read of each passage, the scored bytes included; multiples of ``scored``.
        scored: bytes of each passage that are scored.
    """
    with opened_run(run_dir, one_device()) as (config, model, _):
        rows = passages(prepared(config.data).held_out, max(lengths) + 1)
        graph, params = nnx.split(model.without_conv_leak())
        bits = []
        for length in lengths:
            read = rows[:, -length - 1 :]
            nats = [_last_piece(graph, scored, params, read[i : i + _ROWS]) for i in range(0, len(read), _ROWS)]
            bits.append(float(np.concatenate(nats).mean()) / math.log(2))
        return bits


def passages(text: TokenStream, length: int) -> np.ndarray:
    """All passages [N, length], ids, that lie side by side inside a document, from its beginning."""
    ids, is_first = text.read(0, len(text))
    documents = np.split(ids, np.flatnonzero(is_first)[1:])
    return np.stack([d[i : i + length] for d in documents for i in range(0, len(d) - length, length)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last_piece(graph: Any, scored: int, params: Any, rows: jax.Array) -> jax.Array:
    """Loss [B, scored] of the last tokens of rows [B, T + 1], read in pieces of as many tokens."""
    model = nnx.merge(graph, params)
    pieces, labels = rows[:, :-1].reshape(len(rows), -1, scored).swapaxes(0, 1), rows[:, -scored:]

    def read(cache, piece):
        return model.hidden_states(piece, cache=cache).cache, None

    cache, _ = jax.lax.scan(read, model.init_cache(len(rows), rows.shape[1]), pieces[:-1])
    return model.token_nats(model.hidden_states(pieces[-1], cache=cache).hidden, labels)
