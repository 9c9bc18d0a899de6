"""``mom-jax generate RUN --prompt ...``."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.fields import Count, Name, Range, Seed, check_fields

DESCRIPTION = """Continues a prompt with the newest checkpoint of a run, token by token on the terminal.

Example: mom-jax generate runs/mom-tiny --prompt 'def main(' --max-new-tokens 200 --temperature 0.7"""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """What to continue, and how to choose tokens."""

    run: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or of a published model."""
    prompt: Name
    """Text to continue."""
    max_new_tokens: Annotated[int, Range(least=1, most=2**24)] = 200
    """Tokens to add at most; a document's end stops earlier."""
    temperature: Annotated[float, Range(least=0, most=1e6)] = 0.8
    """0 takes the likeliest token; higher is more varied."""
    top_k: Count | None = None
    """Choose among the k likeliest tokens only."""
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    """Choose among the likeliest tokens that together hold this probability."""
    seed: Seed = 0
    """Seed of the choices."""

    def __post_init__(self):
        check_fields(self)


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
