"""Continues a batch of prompts at once, token by token."""

from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from mom_jax.decoding.checks import check_allowed, check_length, end_ids, token_ids
from mom_jax.decoding.sampling import check_keys, sampling
from mom_jax.decoding.slots import Slots, padded_length
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.typing import AnyArray, Array, Bool, Int


def generate(
    model: MoMForCausalLM,
    input_ids: Int[AnyArray, "B T"],
    max_new_tokens: int,
    attention_mask: Int[AnyArray, "B T"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Array | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    allowed: Bool[AnyArray, " vocab"] | None = None,
    on_token: Callable[[np.ndarray], None] | None = None,
    state_dtype: str = "float32",
) -> Int[Array, "B T+max_new_tokens"]:
    """Continues prompts token by token.

    Prompts of different lengths share a batch with padding on the left and an
    ``attention_mask``. Prompts are padded to the next power of two, so few lengths compile; those
    of more than 2,048 tokens are read in pieces of that length.

    Args:
        model: parameters and configuration.
        input_ids: prompts, int32.
        max_new_tokens: tokens to add, at least 1; the loop runs this long.
        attention_mask: 0 marks padding.
        temperature: 0 (or less than float32's normal range) takes the likeliest token, otherwise logits are
            divided by it.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together hold this probability.
        rng: key for sampling, needed when temperature > 0: one, into which the number of a row is folded, or one for
            each row. A row's tokens depend on its own key alone.
        eos_token_id: a row that produced it is filled up with it; of several, any ends a row and the first fills it.
        allowed: False marks ids that are never chosen, such as rows of the embedding without a token.
        state_dtype: what memories are kept in from token to token: float32, or bfloat16, which is half as much to move
            and drifts (docs/benchmarks.md).
        on_token: called with each step's tokens [B] as soon as they exist, for streaming.

    Returns:
        The prompts followed by the new tokens, int32.

    Raises:
        InputError: an option out of its range, an empty prompt, a token id outside the vocabulary, or a model
            whose logits are not finite.
    """
    steps = max_new_tokens if on_token is None else 1
    new = []
    how = (temperature, top_k, top_p, rng, eos_token_id, allowed, state_dtype)
    for tokens in generate_blocks(model, input_ids, max_new_tokens, steps, attention_mask, *how):
        new.append(np.asarray(tokens))
        if on_token is not None:
            on_token(new[-1][:, 0])
    return jnp.asarray(np.concatenate([np.asarray(input_ids, np.int32), *new], 1))


def generate_blocks(
    model: MoMForCausalLM,
    input_ids: Int[AnyArray, "B T"],
    max_new_tokens: int,
    block: int,
    attention_mask: Int[AnyArray, "B T"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Array | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    allowed: Bool[AnyArray, " vocab"] | None = None,
    state_dtype: str = "float32",
) -> Iterator[Int[np.ndarray, "B block"]]:
    """The new tokens of `generate`, ``block`` steps at a time; who has seen enough of them stops asking.

    The last block is whole too: it may go past ``max_new_tokens``.

    Raises:
        InputError: as `generate`, when the first block is asked for; for logits that are not finite, with their block.
    """
    vocab, ends = model.config.vocab_size, end_ids(eos_token_id, model.config.vocab_size)
    ids = token_ids("input_ids", input_ids, vocab)  # what is done to prompts on the host needs no program
    if ids.ndim != 2 or ids.size == 0:
        raise InputError("input_ids.shape", ids.shape, "expected a non-empty [batch, time]")
    check_length(max_new_tokens)
    how, knobs = sampling(temperature, top_k, top_p, vocab)
    check_allowed(allowed, vocab)
    batch, time = ids.shape
    rng = check_keys(rng, batch, how)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
    if mask.shape != ids.shape:
        raise InputError("attention_mask.shape", mask.shape, f"expected {ids.shape}, as input_ids")
    if not mask[:, -1].all():
        raise InputError("attention_mask", "0 in the last column", "pad prompts on the left")

    blocks = -(-max_new_tokens // block)
    slots = Slots(model, batch, padded_length(time) + blocks * block, how, knobs, allowed, state_dtype)
    slots.join(range(batch), ids, mask, rng, np.arange(batch))
    for _ in range(blocks):
        tokens = _filled_up(slots.decode(block), slots.taken, ends)
        slots.leave(np.isin(tokens, ends).any(1))
        yield tokens


def _filled_up(tokens: np.ndarray, going_on: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    """Tokens [B, block], with the first end token in the place of all that follow an end, of this block or before."""
    if not ends:
        return tokens
    is_end = np.isin(tokens, ends)
    ended = (np.cumsum(is_end, 1) - is_end > 0) | ~going_on[:, None]
    return np.where(ended, ends[0], tokens)
