"""Answers to prompts: prefill and decoding with a constant state, up to a stop string."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mom_jax.data.tokenizers import Tokenizer
from mom_jax.decoding import generate_blocks
from mom_jax.errors import InputError
from mom_jax.evals.harness.likelihood import Place, padded_length
from mom_jax.models.lm import MoMForCausalLM

_BLOCK = 16  # tokens between two looks for a stop string


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
    place: Place,
    allowed: np.ndarray | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, str]]:
    """Answers prompts, the longest first; yields each one's number and text as soon as its batch is done.

    A prompt keeps its last ``max_length`` tokens less those of its answer. Batches are filled up with rows
    of one token and padded on the left to a power of two. A batch ends when every row has met a stop string
    or the end token. ``allowed`` marks the ids that may be chosen, bool [vocab].

    Raises:
        InputError: an answer may be as long as ``max_length``, or a model that gives NaN.
    """
    longest = max((prompt.max_tokens for prompt in prompts), default=0)
    if longest >= max_length:
        remedy = f"leaves no room for a prompt beside an answer of {longest} tokens; raise it"
        raise InputError("sequence_length", max_length, remedy)
    model = model.without_conv_leak()
    rows = {i: prompt.ids[-(max_length - prompt.max_tokens) :] for i, prompt in enumerate(prompts)}
    order = sorted(rows, key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _batch([rows[i] for i in chosen], batch_size, tokenizer.eos_id)
        batch_prompts = [prompts[i] for i in chosen]
        keys = jax.random.fold_in(jax.random.key(seed), start)
        texts = _answer(model, tokenizer, place(batch), batch_prompts, sampling, keys, allowed)
        yield from zip(chosen, texts, strict=True)


def _batch(rows: list[list[int]], batch_size: int, filler: int) -> dict[str, np.ndarray]:
    shape = batch_size, padded_length(max(len(row) for row in rows))
    ids, mask = np.full(shape, filler, np.int32), np.zeros(shape, np.int32)
    mask[:, -1] = 1
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    return {"input_ids": ids, "mask": mask}


def _answer(model, tokenizer, batch, prompts: list[Prompt], sampling: Sampling, rng, allowed) -> list[str]:
    tokens = np.zeros((len(prompts), 0), np.int32)
    blocks = generate_blocks(
        model,
        batch["input_ids"],
        max(prompt.max_tokens for prompt in prompts),
        _BLOCK,
        batch["mask"],
        **dataclasses.asdict(sampling),
        rng=rng,
        eos_token_id=tokenizer.eos_id,
        allowed=allowed,
    )
    for block in blocks:
        tokens = np.concatenate([tokens, np.asarray(block)[: len(prompts)]], 1)
        answers = [_cut(tokenizer, row, prompt) for row, prompt in zip(tokens, prompts, strict=True)]
        if all(ended for _, ended in answers):
            break
    return [text for text, _ in answers]


def _cut(tokenizer: Tokenizer, tokens: np.ndarray, prompt: Prompt) -> tuple[str, bool]:
    """The text of an answer up to its end, and whether it has ended."""
    ids = tokens[: prompt.max_tokens]
    ended = len(tokens) >= prompt.max_tokens
    (ends,) = np.nonzero(ids == tokenizer.eos_id)
    if ends.size:
        ids, ended = ids[: ends[0]], True
    text = tokenizer.decode(ids)
    places = [place for stop in prompt.stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, ended)
