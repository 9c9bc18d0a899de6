"""Documents of packed rows: the maximal runs of one number along a row's tokens.

Numbers tell neighbours apart and nothing more: they may recur (``1 2 1`` are three documents), in any order.
Padding neither ends a document nor begins one, whatever number stands there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.errors import InputError
from mom_jax.typing import AnyArray, Array, Bool, Int, Mask, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DocumentRuns:
    """The documents of one call, counted; made once by `count_documents` and handed down to every layer."""

    index: Int[Array, "B T"]  # documents begun in this call before or at each token; 0 goes on from before the call
    number: Int[Array, " B"]  # segment id of each row's last token, of this call or before


def count_documents(
    segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None,
    attention_mask: Mask | None = None,
    last: Int[Array, " B"] | None = None,
) -> DocumentRuns | None:
    """Counts the documents along each row.

    Args:
        segment_ids: document numbers, any that fit int32. None (all tokens go on with the row's document) and
            what is counted already come back as they are.
        attention_mask: 0 marks padding, whose numbers do not matter.
        last: the number that each row's last token had before this call; None where there is no call before.

    Raises:
        InputError: numbers that are not whole or do not fit int32 (the latter outside of ``jit``).
    """
    if segment_ids is None or isinstance(segment_ids, DocumentRuns):
        return segment_ids
    numbers = _as_int32(segment_ids)
    keep = None if attention_mask is None else jnp.asarray(attention_mask) != 0
    if last is None:
        first = jnp.zeros((numbers.shape[0], 1), jnp.int32) if keep is None else jnp.argmax(keep, 1, keepdims=True)
        last = jnp.take_along_axis(numbers, first, 1)[:, 0]
    if keep is not None:
        numbers = _carried_over_padding(numbers, keep, last)
    before = jnp.concatenate([last[:, None], numbers[:, :-1]], 1)
    return DocumentRuns(jnp.cumsum(numbers != before, 1, dtype=jnp.int32), numbers[:, -1])


def places_in_documents(
    shape: tuple[int, int],
    documents: DocumentRuns | None,
    attention_mask: Mask | None,
    before: Int[Array, " B"] | None,
) -> Int[Array, "B T"]:
    """How many tokens of its document stand before each token; padding has the place of the token before it.

    Args:
        shape: B and T.
        documents: of the call; None if no document begins in it.
        attention_mask: 0 marks padding.
        before: tokens that earlier calls read of each row's document; none if None.
    """
    keep = jnp.ones(shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
    count = jnp.cumsum(keep, 1, dtype=jnp.int32) - 1
    going_on = count if before is None else count + before[:, None]
    if documents is None:
        return going_on
    begins = keep & (documents.index != jnp.pad(documents.index[:, :-1], ((0, 0), (1, 0))))
    begin = jax.lax.cummax(jnp.where(begins, count, -1), axis=1)
    return jnp.where(begin < 0, going_on, count - begin)


def _carried_over_padding(
    numbers: Int[Array, "B T"], keep: Bool[Array, "B T"], last: Int[Array, " B"]
) -> Int[Array, "B T"]:
    """Padding takes the number of the token before it."""
    token = jax.lax.cummax(jnp.where(keep, jnp.arange(numbers.shape[1]), -1), axis=1)
    carried = jnp.take_along_axis(numbers, jnp.maximum(token, 0), 1)
    return jnp.where(token < 0, last[:, None], carried)


def _as_int32(numbers: Shaped[AnyArray, "B T"]) -> Int[Array, "B T"]:
    numbers = numbers if isinstance(numbers, jax.Array) else np.asarray(numbers)
    if not (jnp.issubdtype(numbers.dtype, jnp.integer) or numbers.dtype == bool):
        raise InputError("segment_ids.dtype", str(numbers.dtype), "document numbers are whole numbers")
    if isinstance(numbers, np.ndarray) and numbers.size:
        wrong = numbers[numbers != numbers.astype(np.int32)]
        if wrong.size:
            raise InputError("segment_ids", int(wrong[0]), "document numbers must fit int32; number them anew")
    return jnp.asarray(numbers, jnp.int32)
