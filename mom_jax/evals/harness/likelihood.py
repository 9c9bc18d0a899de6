"""Log-likelihoods of continuations, in padded batches of few shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mom_jax.decoding import not_finite
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.loss import chunked_token_scores

Place = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]  # host rows [B, T] onto the devices
_SHORTEST = 32  # shorter rows are padded to this length


class Pair(NamedTuple):
    """Token ids of a context and of what follows it, at least one of each."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """What the model makes of a `Pair`."""

    pair: int  # its number
    log_likelihood: float  # of the continuation, in nats
    is_greedy: bool  # every token of it was the likeliest


def padded_length(length: int) -> int:
    """The length that a row is padded to: a power of two from 32."""
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def score_pairs(
    model: MoMForCausalLM,
    pairs: Sequence[Pair],
    max_length: int,
    batch_size: int,
    place: Place,
    candidates: np.ndarray | None = None,
) -> Iterator[Score]:
    """Scores pairs, the longest first; each batch's scores come as soon as they are known.

    Rows are padded on the right to one of a few lengths and batches filled up with empty rows, so each
    length compiles once. A pair longer than ``max_length`` inputs loses the beginning of its context.

    Args:
        model: its parameters may be sharded; then call this under ``jax.set_mesh``.
        pairs: what to score.
        max_length: the most tokens the model reads at once.
        batch_size: rows of every batch.
        place: moves a batch to the devices.
        candidates: the ids among which the likeliest is sought, bool [vocab]; None: all.

    Raises:
        InputError: a continuation of more than ``max_length`` tokens or of none, or a model that gives NaN.
    """
    if not all(pair.context and pair.continuation for pair in pairs):
        raise InputError("pairs", "a continuation or context without tokens", "has no likelihood; leave it out")
    longest = max((len(pair.continuation) for pair in pairs), default=0)
    if longest > max_length:
        remedy = f"is shorter than a continuation of {longest} tokens; raise it"
        raise InputError("sequence_length", max_length, remedy)
    graphdef, params = nnx.split(model.without_conv_leak())
    rows = {i: (pair.context + pair.continuation)[-max_length - 1 :] for i, pair in enumerate(pairs)}
    order = sorted(rows, key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        shape = batch_size, min(padded_length(max(len(rows[chosen[0]]) - 1, 1)), max_length)
        batch = _batch([rows[i] for i in chosen], [len(pairs[i].continuation) for i in chosen], shape)
        nats, likeliest = (np.asarray(a) for a in _score(graphdef, params, place(batch), candidates))
        counted = batch["labels"] != IGNORE
        for row, i in enumerate(chosen):
            total = nats[row].sum(dtype=np.float64)
            if not np.isfinite(total):
                raise not_finite("log-likelihoods")
            yield Score(i, -float(total), bool(likeliest[row][counted[row]].all()))


def _batch(rows: list[list[int]], scored: list[int], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    ids, mask, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32)
    for i, (row, last) in enumerate(zip(rows, scored, strict=True)):
        length = len(row) - 1
        ids[i, :length], mask[i, :length] = row[:-1], 1
        labels[i, length - last : length] = row[len(row) - last :]
    return {"input_ids": ids, "mask": mask, "labels": labels}


@functools.partial(jax.jit, static_argnums=0)
def _score(graphdef: Any, params: Any, batch: dict[str, jax.Array], candidates: jax.Array | None) -> Any:
    model: MoMForCausalLM = nnx.merge(graphdef, params)
    hidden, _, _ = model.hidden_states(batch["input_ids"], attention_mask=batch["mask"])
    return chunked_token_scores(hidden, model.output_embedding(), batch["labels"], candidates)
