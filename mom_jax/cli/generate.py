"""``mom-jax generate RUN --prompt ...``."""

import dataclasses
import sys
from collections.abc import Sequence

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.errors import InputError

DESCRIPTION = """Continues a prompt with the newest checkpoint of a run, token by token on the terminal.

Example: mom-jax generate runs/mom-tiny --prompt 'def main(' --max-new-tokens 200 --temperature 0.7"""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """What to continue, and how to choose tokens."""

    run: tyro.conf.Positional[str]
    """Folder of the run, or of a published model."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int = 200
    """Tokens to add at most; a document's end stops earlier."""
    temperature: float = 0.8
    """0 takes the likeliest token; higher is more varied."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together hold this probability."""
    seed: int = 0
    """Seed of the choices."""

    def __post_init__(self):
        if not self.prompt:
            raise InputError("prompt", "''", "must not be empty")
        if self.max_new_tokens < 1:
            raise InputError("max_new_tokens", self.max_new_tokens, "must be at least 1")
        if not self.temperature >= 0:
            raise InputError("temperature", self.temperature, "must be 0 (greedy) or positive")
        if self.top_k is not None and self.top_k < 1:
            raise InputError("top_k", self.top_k, "must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError("top_p", self.top_p, "must be greater than 0 and at most 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "must be at least 0")


def main(args: Sequence[str]) -> int:
    """Parses the arguments and streams the continuation to stdout."""
    wanted = parse(GenerateConfig, args, prog="mom-jax generate", description=DESCRIPTION)
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.runs import complete, console
    from mom_jax.runs import one_device, opened_run

    console()
    with opened_run(wanted.run, one_device()) as (config, model, _):
        complete(
            config,
            model,
            wanted.prompt,
            wanted.max_new_tokens,
            _write,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            seed=wanted.seed,
        )
    _write("\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
