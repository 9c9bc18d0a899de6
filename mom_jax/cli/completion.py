"""Continues a prompt with a model, piece by piece; imports JAX."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from mom_jax.data.tokenizers import StreamDecoder, Tokenizer, load_tokenizer, token_rows
from mom_jax.decoding import generate_blocks
from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Choices:
    """How tokens are chosen and memories kept, as `mom_jax.generate` has it."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    state_dtype: str = "float32"


def complete(
    config: TrainConfig,
    model: MoMForCausalLM,
    prompt: str,
    max_new_tokens: int,
    write: Callable[[str], None],
    choices: Choices,
    *,
    seed: int = 0,
    stops: Sequence[str] = (),
    samples: int = 1,
) -> None:
    """Writes the prompt and its continuation, as tokens come, up to the document's end or the first of ``stops``.

    Several samples of a seed differ; they follow each other, each under a line with its number.

    Raises:
        InputError: the prompt contains no token, the tokenizer has more tokens than the model rows, or an option is out
            of its range, before anything is written; or the model gives NaN.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    rows = token_rows(tokenizer, config.model.vocab_size, "put back the tokenizer it was trained with")
    ids = tokenizer.encode(prompt)
    if len(ids) == 0:
        raise InputError("prompt", repr(prompt[:40]), "contains no token")
    ends = end_ids_of(tokenizer, config.model)
    for sample in range(samples):
        blocks = generate_blocks(
            model,
            ids[None],
            max_new_tokens,
            block=1,
            rng=sample_key(seed, sample, ids),
            eos_token_id=ends,
            allowed=rows,
            **dataclasses.asdict(choices),
        )
        new = itertools.takewhile(lambda token: token not in ends, (int(block[0, 0]) for block in blocks))
        texts = until_stop(texts_of(tokenizer, ids, new), stops)
        first = next(texts, "")  # here all that may be wrong with the options shows
        header = f"--- sample {sample + 1} of {samples} ---\n" if samples > 1 else ""
        for text in itertools.chain(["\n" if sample else "", header, prompt, first], texts):
            write(text)


def end_ids_of(tokenizer: Tokenizer, config: MoMConfig) -> list[int]:
    """The tokenizer's end token, and those of a published configuration that lists several."""
    listed = config.eos_token_id if isinstance(config.eos_token_id, tuple) else ()
    return [tokenizer.eos_id, *listed]


def sample_key(seed: int, sample: int, prompt: np.ndarray) -> jax.Array:
    """The key of one sample of a seed after a prompt's ids: each prompt has draws of its own, wherever it stands."""
    key = jax.random.fold_in(jax.random.key(seed), sample)
    return jax.random.fold_in(key, np.uint32(zlib.crc32(prompt.astype("<i4").tobytes())))


def texts_of(tokenizer: Tokenizer, prompt: np.ndarray, new: Iterable[int]) -> Iterator[str]:
    """The text of new ids, in the pieces in which it becomes certain."""
    decoder = StreamDecoder(tokenizer, prompt)
    for token in new:
        yield decoder.feed(token)
    yield decoder.flush()


def until_stop(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """``texts`` up to the first of ``stops``; what may be the beginning of one waits."""
    waiting = ""
    for text in texts:
        waiting += text
        places = [place for stop in stops if (place := waiting.find(stop)) >= 0]
        if places:
            yield waiting[: min(places)]
            return
        kept = max((n for stop in stops for n in range(1, len(stop)) if waiting.endswith(stop[:n])), default=0)
        yield waiting[: len(waiting) - kept]
        waiting = waiting[len(waiting) - kept :]
    yield waiting
