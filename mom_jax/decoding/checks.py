"""What is asked of ids, lengths and tokens that are allowed, before anything is decoded."""

from collections.abc import Sequence

import numpy as np

from mom_jax.errors import InputError
from mom_jax.typing import Array


def check_ids(field: str, ids: np.ndarray, vocab: int) -> None:
    """Raises `InputError` for an id outside of the vocabulary."""
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise InputError(field, int(wrong[0]), f"token ids must lie in [0, {vocab})")


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
    ids = np.asarray([] if eos_token_id is None else eos_token_id).reshape(-1)
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise InputError("eos_token_id", eos_token_id, "must be a token id, or several in a list")
    check_ids("eos_token_id", ids, vocab)
    return tuple(ids.tolist())
