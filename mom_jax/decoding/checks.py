"""What is asked of ids, lengths and tokens that are allowed, before anything is decoded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mom_jax.errors import InputError
from mom_jax.typing import Array, Int


def token_ids(field: str, ids: Any, vocab: int) -> Int[np.ndarray, "..."]:
    """Ids as int32.

    Raises:
        InputError: some are no whole numbers, or outside of the vocabulary.
    """
    found = np.asarray(ids)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise InputError(field, found.flat[0].item(), "token ids must be whole numbers")
    wrong = found[(found < 0) | (found >= vocab)]
    if wrong.size:
        raise InputError(field, int(wrong[0]), f"token ids must lie in [0, {vocab})")
    return found.astype(np.int32)


def check_length(max_new_tokens: int) -> None:
    """Raises `InputError` for fewer than one token."""
    if max_new_tokens < 1:
        raise InputError("max_new_tokens", max_new_tokens, "must be at least 1")


def check_allowed(allowed: Array | np.ndarray | None, vocab: int) -> None:
    """Raises `InputError` for what does not mark some of the vocabulary's ids."""
    if allowed is not None and (np.shape(allowed) != (vocab,) or not np.asarray(allowed).any()):
        raise InputError("allowed", np.shape(allowed), f"expected booleans [{vocab}], at least one of them True")


def end_ids(eos_token_id: int | Sequence[int] | None, vocab: int) -> tuple[int, ...]:
    """The end tokens as a tuple, whatever their number.

    Raises:
        InputError: what is no id of the vocabulary.
    """
    return tuple(token_ids("eos_token_id", [] if eos_token_id is None else eos_token_id, vocab).reshape(-1).tolist())
