"""What several verbs say and do with a run; imports JAX."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mom_jax import terminal
from mom_jax.data.tokenizers import StreamDecoder, load_tokenizer
from mom_jax.decoding import generate
from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.terminal import print_table
from mom_jax.training.config import TrainConfig
from mom_jax.training.processes import is_first


def console() -> Console:
    """Where verbs print, the first of several processes alone.

    The checkpoint library's own log is kept out of it, for its errors reach us as exceptions.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return terminal.console(quiet=not is_first())


class _DocumentEnd(Exception):
    """Breaks off `generate`, which would fill up the row with end tokens."""


def complete(
    config: TrainConfig,
    model: MoMForCausalLM,
    prompt: str,
    max_new_tokens: int,
    write: Callable[[str], None],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> None:
    """Writes the prompt and then its continuation, piece by piece as tokens come, up to the end of the document.

    Raises:
        InputError: the prompt holds no token, or the tokenizer is not the model's.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise InputError(
            "data.tokenizer",
            tokenizer.name,
            f"has {tokenizer.vocab_size} tokens but the model {config.model.vocab_size}; "
            "put the tokenizer file of the training back",
        )
    ids = tokenizer.encode(prompt)
    if len(ids) == 0:
        raise InputError("prompt", prompt or "''", "holds no token")
    decoder = StreamDecoder(tokenizer, ids)

    def on_token(token: np.ndarray) -> None:
        if int(token[0]) == tokenizer.eos_id:
            raise _DocumentEnd
        write(decoder.feed(int(token[0])))

    write(prompt)
    with suppress(_DocumentEnd):
        generate(
            model,
            jnp.asarray(ids)[None],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            rng=jax.random.key(seed),
            eos_token_id=tokenizer.eos_id,
            on_token=on_token,
        )
    write(decoder.flush())


def print_evaluation(evaluation: dict[str, Any], out: Console) -> None:
    """Prints tables of the scores, the loss by position, and the load of each memory."""
    scores = Table(title=f"held-out text, step {evaluation['step']}", title_justify="left")
    for name in ("tokens", "loss (nats)", "perplexity", "bits per byte"):
        scores.add_column(name, justify="right")
    scores.add_row(
        f"{evaluation['tokens']:,}",
        f"{evaluation['loss']:.4f}",
        f"{evaluation['perplexity']:.3f}",
        f"{evaluation['bits_per_byte']:.4f}",
    )
    positions = Table("position", "tokens", "loss (nats)", title="by position in the window", title_justify="left")
    for bucket in evaluation["by_position"]:
        positions.add_row(f"{bucket['start']}-{bucket['stop'] - 1}", f"{bucket['tokens']:,}", f"{bucket['loss']:.4f}")
    for table in (scores, positions):
        print_table(table, out)
    if "load" not in evaluation:
        return
    memories = [f"memory {m}" for m in range(len(evaluation["load"][0]))]
    loads = Table("layer", *memories, "entropy (nats)", title="share of the assignments", title_justify="left")
    for layer, (load, entropy) in enumerate(zip(evaluation["load"], evaluation["routing_entropy"], strict=True)):
        loads.add_row(str(layer), *(f"{share:.3f}" for share in load), f"{entropy:.3f}")
    print_table(loads, out)
