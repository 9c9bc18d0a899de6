"""Continues many prompts, which join a batch and leave it one by one (continuous batching)."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mom_jax.decoding.checks import check_allowed, check_length, end_ids, token_ids
from mom_jax.decoding.sampling import check_keys, sampling
from mom_jax.decoding.slots import Slots, padded_length
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.typing import AnyArray, Array, Bool, Int


class Continuation(NamedTuple):
    """What `generate_many` made of a prompt."""

    number: int  # of the prompt
    tokens: Int[np.ndarray, " n"]  # the new ones, the end token included
    is_whole: bool  # it came to an end by itself; False: it was cut off at the most tokens it may have


@dataclasses.dataclass
class _Row:
    """A prompt that sits in a slot, and its new tokens so far."""

    number: int
    most: int
    tokens: Int[np.ndarray, " n"]

    def feed(self, tokens: np.ndarray, ends: tuple[int, ...], ended: Callable[[int, np.ndarray], bool] | None) -> bool:
        """Takes the next tokens up to the row's end; whether it has come to it by itself."""
        (places,) = np.nonzero(np.isin(tokens, ends))
        stop = places[0] + 1 if places.size else len(tokens)
        self.tokens = np.concatenate([self.tokens, tokens[:stop]])[: self.most]
        at_end = bool(len(self.tokens) and self.tokens[-1] in ends)
        return at_end or (ended is not None and ended(self.number, self.tokens))


def generate_many(
    model: MoMForCausalLM,
    prompts: Sequence[Sequence[int] | Int[np.ndarray, " T"]],
    max_new_tokens: int | Sequence[int],
    *,
    slots: int = 8,
    block: int = 16,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Array | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    allowed: Bool[AnyArray, " vocab"] | None = None,
    ended: Callable[[int, np.ndarray], bool] | None = None,
    state_dtype: str = "float32",
) -> Iterator[Continuation]:
    """Continues any number of prompts, ``slots`` at a time (continuous batching); yields each as soon as it is done.

    A prompt whose predecessor has ended takes its slot and is read there, padded to a power of two, while the states of
    the others wait; one program decodes all slots, however rows come and go. Nothing of a row depends on the others: a
    prompt gets the tokens that it gets alone, bit for bit with the same number of slots. (With another number XLA may
    add up a product in another order, which can turn a tie.)

    Args:
        model: parameters and configuration.
        prompts: token ids of each.
        max_new_tokens: tokens to add at most, of all prompts or of each.
        slots: rows of the batch.
        block: steps between two looks at which rows have ended.
        temperature, top_k, top_p, eos_token_id, allowed, state_dtype: as in `generate`.
        rng: one key, into which a prompt's number is folded, or one for each prompt.
        ended: called with a prompt's number and all its new tokens after each block; True ends the row.

    Raises:
        InputError: as `generate`, when the first continuation is asked for; for logits that are not finite, with them.
    """
    vocab, ends = model.config.vocab_size, end_ids(eos_token_id, model.config.vocab_size)
    rows = [token_ids(f"prompts[{number}]", prompt, vocab).reshape(-1) for number, prompt in enumerate(prompts)]
    asked: Any = max_new_tokens
    most = np.broadcast_to(asked, len(rows)).tolist() if np.ndim(asked) == 0 else [*asked]
    if len(most) != len(rows):
        raise InputError("max_new_tokens", f"[{len(most)} numbers]", f"must be one, or one for each of {len(rows)}")
    if min(slots, block) < 1:
        raise InputError("slots" if slots < 1 else "block", min(slots, block), "must be at least 1")
    for number, row in enumerate(rows):
        if row.size == 0:
            raise InputError(f"prompts[{number}]", "[]", "contains no token")
        check_length(most[number])
    how, knobs = sampling(temperature, top_k, top_p, vocab)
    check_allowed(allowed, vocab)
    rng = check_keys(rng, len(rows), how)
    if not rows:
        return
    longest = max(padded_length(len(row)) + -(-new // block) * block for row, new in zip(rows, most, strict=True))
    batch, seated = Slots(model, slots, longest, how, knobs, allowed, state_dtype), {}
    waiting = collections.deque(range(len(rows)))
    while waiting or seated:
        for slot in np.flatnonzero(~batch.taken)[: len(waiting)]:
            number = waiting.popleft()
            ids, key = rows[number][None], rng if rng.ndim == 0 else rng[number : number + 1]
            batch.join([slot], ids, np.ones_like(ids), key, np.array([number]))
            seated[slot] = _Row(number, most[number], np.zeros(0, np.int32))
        tokens = batch.decode(block)
        for slot, row in list(seated.items()):
            is_whole = row.feed(tokens[slot], ends, ended)
            if is_whole or len(row.tokens) == row.most:
                batch.leave([slot])
                del seated[slot]
                yield Continuation(row.number, row.tokens, is_whole)
