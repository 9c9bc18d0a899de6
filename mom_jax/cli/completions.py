"""Continues many prompts at once; imports JAX."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.cli.completion import Choices, end_ids_of, sample_key, texts_of, until_stop
from mom_jax.cli.prompts import Prompt, Record
from mom_jax.data.tokenizers import StreamDecoder, Tokenizer, load_tokenizer, token_rows
from mom_jax.decoding import generate_many
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.terminal import counting
from mom_jax.training.config import TrainConfig


def complete_all(
    config: TrainConfig,
    model: MoMForCausalLM,
    prompts: Sequence[Prompt],
    write: Callable[[dict[str, Any]], None],
    choices: Choices,
    *,
    slots: int,
    samples: int = 1,
    done: Set[tuple[int, int]] = frozenset(),
) -> None:
    """Writes a record of each continuation as soon as it has ended, and tells on stderr how far all are.

    A prompt gets the text that `mom_jax.cli.completion.complete` gives it, of its own seed.

    Args:
        done: lines and samples that are left out.

    Raises:
        InputError: as `complete`, before anything is written; or the model gives NaN.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    rows = token_rows(tokenizer, config.model.vocab_size, "put back the tokenizer it was trained with")
    ends = end_ids_of(tokenizer, config.model)
    pairs = itertools.product(prompts, range(samples))
    answers = [_Answer(prompt, n, tokenizer, ends) for prompt, n in pairs if (prompt.line, n) not in done]
    if not answers:
        return
    continuations = generate_many(
        model,
        [answer.ids for answer in answers],
        [answer.prompt.max_new_tokens for answer in answers],
        slots=slots,
        rng=_keys(answers),
        eos_token_id=ends,
        allowed=rows,
        ended=lambda number, tokens: answers[number].has_stopped(tokens),
        **dataclasses.asdict(choices),
    )
    begin, tokens = time.perf_counter(), 0
    with counting("continuations", len(answers)) as advance:
        for number, new, is_whole in continuations:
            write({**answers[number].prompt.fields, **answers[number].record(new, is_whole)})
            tokens += len(new)
            advance(f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s")


class _Answer:
    """A prompt on its way to one of its samples."""

    def __init__(self, prompt: Prompt, sample: int, tokenizer: Tokenizer, ends: Sequence[int]):
        self.prompt, self.sample, self.ids = prompt, sample, tokenizer.encode(prompt.text)
        if len(self.ids) == 0:
            raise InputError("prompts", f"line {prompt.line}", "contains no token")
        self._tokenizer, self._ends = tokenizer, ends
        self._decoder, self._read, self._text = StreamDecoder(tokenizer, self.ids), 0, ""

    def has_stopped(self, tokens: np.ndarray) -> bool:
        """Whether the text of all new tokens so far holds a text that ends it."""
        if self.prompt.stop:
            self._text += "".join(map(self._decoder.feed, self._before_end(tokens[self._read :])))
            self._read = len(tokens)
        return any(stop in self._text for stop in self.prompt.stop)

    def record(self, tokens: np.ndarray, is_whole: bool) -> Record:
        """What is known of it in the end."""
        pieces = list(texts_of(self._tokenizer, self.ids, self._before_end(tokens)))
        completion = "".join(until_stop(pieces, self.prompt.stop))
        stopped = is_whole or completion != "".join(pieces)
        return {
            "line": self.prompt.line,
            "sample": self.sample,
            "prompt": self.prompt.text,
            "completion": completion,
            "finish_reason": "stop" if stopped else "length",
        }

    def _before_end(self, tokens: np.ndarray) -> Iterator[int]:
        return itertools.takewhile(lambda token: token not in self._ends, tokens.tolist())


def _keys(answers: Sequence[_Answer]) -> jax.Array:
    """What `complete` gives to a prompt of such a seed and sample, the only row of its batch."""
    keys = (jax.random.fold_in(sample_key(answer.prompt.seed, answer.sample, answer.ids), 0) for answer in answers)
    return jax.random.wrap_key_data(jnp.asarray(np.stack([np.asarray(jax.random.key_data(key)) for key in keys])))
