"""Answers to prompts: they share a fixed batch, each up to its own stop string."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mom_jax.data.tokenizers import Tokenizer
from mom_jax.decoding import generate_many
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; prompts of one kind share batches."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


class Prompt(NamedTuple):
    """Token ids of a prompt, and where its answer ends."""

    ids: list[int]
    stops: tuple[str, ...]
    max_tokens: int


def answer_prompts(
    model: MoMForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    max_length: int,
    batch_size: int,
    allowed: np.ndarray | None = None,
) -> Iterator[tuple[int, str]]:
    """Answers prompts, ``batch_size`` at a time; yields each one's number and text as soon as it has ended.

    A prompt keeps its last ``max_length`` tokens less those of its answer, which ends at a stop string, at the end
    token, or at its most tokens. ``allowed`` marks the ids that may be chosen, bool [vocab].

    Raises:
        InputError: an answer may be as long as ``max_length``, or a model that gives NaN.
    """
    longest = max((prompt.max_tokens for prompt in prompts), default=0)
    if longest >= max_length:
        remedy = f"leaves no room for a prompt beside an answer of {longest} tokens; raise it"
        raise InputError("sequence_length", max_length, remedy)
    continuations = generate_many(
        model.without_conv_leak(),
        [prompt.ids[-(max_length - prompt.max_tokens) :] for prompt in prompts],
        [prompt.max_tokens for prompt in prompts],
        slots=batch_size,
        **dataclasses.asdict(sampling),
        rng=jax.random.key(0),
        eos_token_id=tokenizer.eos_id,
        allowed=allowed,
        ended=lambda number, tokens: _cut(tokenizer, tokens, prompts[number])[1],
    )
    for number, tokens, _ in continuations:
        yield number, _cut(tokenizer, tokens, prompts[number])[0]


def _cut(tokenizer: Tokenizer, tokens: np.ndarray, prompt: Prompt) -> tuple[str, bool]:
    """The text of an answer up to its end token or stop string, and whether it has met a stop string."""
    (ends,) = np.nonzero(tokens == tokenizer.eos_id)
    text = tokenizer.decode(tokens[: ends[0]] if ends.size else tokens)
    places = [place for stop in prompt.stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))], bool(places)
