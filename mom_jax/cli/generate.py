"""``mom-jax generate RUN --prompt ...``."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from mom_jax.cli.parsing import OfRun, Place, parse
from mom_jax.cli.prompts import Prompt, appending, continued, read_prompts
from mom_jax.errors import InputError
from mom_jax.fields import Count, Name, Range, Seed, StateDtype, check_fields
from mom_jax.files import json_line, read_text
from mom_jax.importing import loading
from mom_jax.paths import local_path
from mom_jax.training.run_places import at_hand

DESCRIPTION = """Continues a prompt with a checkpoint of a run (the newest, or the one of --step), token by token on
the terminal.

Example: mom-jax generate runs/mom-tiny --prompt 'def main(' --max-new-tokens 200 --temperature 0.7

Example: mom-jax generate runs/mom-tiny --prompts prompts.jsonl --slots 16 --out continuations.jsonl

Many prompts (--prompts) share a fixed batch of slots: one that ends makes room for the next. Each gets the text that it
gets alone.
"""

_STDIN = "-"


def _optional(metavar: str) -> Any:
    """Optional text; what is given is taken literally, even the word None."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: ["none" if value is None else value],
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(OfRun):
    """What to continue, and how to choose tokens."""

    prompt: Annotated[Name | None, _optional("TEXT")] = None
    """Text to continue; - reads it from standard input, to its end."""
    prompt_file: Annotated[Place | None, _optional("FILE")] = None
    """File of the text to continue (UTF-8, taken as it is, the newline at its end included), instead of --prompt."""
    prompts: Annotated[Place | None, _optional("FILE")] = None
    """File of many texts to continue, instead of --prompt; - is standard input. One in each line, or JSON lines with a
    text in the field prompt, and each line's own max_new_tokens, stop and seed if it has them."""
    slots: Count = 8
    """With --prompts: how many are continued at once."""
    out: Annotated[Place | None, _optional("FILE")] = None
    """With --prompts: the file of continuations, JSON lines in the order in which they end; standard output if none is
    given. What a file holds already is not made again."""
    max_new_tokens: Annotated[int, Range(least=1, most=2**24)] = 200
    """Most tokens to add; the end of a document stops earlier."""
    stop: Annotated[tuple[Name, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")] = ()
    """A text that ends the continuation and is not shown; may be given several times."""
    num_samples: Count = 1
    """Continuations to make, one after the other."""
    temperature: Annotated[float, Range(least=0, most=1e6)] = 0.8
    """0 takes the likeliest token; higher is more varied."""
    top_k: Count | None = None
    """Choose among the k likeliest tokens only."""
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    """Choose among the likeliest tokens that together hold this probability."""
    seed: Seed = 0
    """Seed of the choices."""
    state_dtype: StateDtype = "float32"
    """What memories are kept in from token to token; bfloat16 takes half the bytes and rounds them at each token."""

    def __post_init__(self):
        check_fields(self)
        given = [name for name in ("prompt", "prompt_file", "prompts") if getattr(self, name) is not None]
        if not given:
            remedy = (
                "is missing; give --prompt TEXT, --prompt - for standard input, or a FILE: --prompt-file, --prompts"
            )
            raise InputError("--prompt", "''", remedy)
        if len(given) > 1:
            other = f"--{given[0].replace('_', '-')}"
            raise InputError(given[-1], getattr(self, given[-1]), f"give either this or {other}, not both")
        if self.out is not None and self.prompts is None:
            raise InputError("out", self.out, "is for many continuations; give --prompts FILE, or leave it out")
        if self.num_samples > 1 and self.temperature == 0:
            remedy = "would all be the same at --temperature 0; raise the temperature"
            raise InputError("num_samples", self.num_samples, remedy)


def main(args: Sequence[str]) -> int:
    """Parses the arguments and streams the continuation to stdout, or many to a file."""
    arguments = parse(GenerateConfig, args, prog="mom-jax generate", description=DESCRIPTION)
    if arguments.prompts is None:
        text = read_prompt(arguments)
        go_on = functools.partial(_complete, arguments, text)
    else:
        prompts = read_prompts(_many(arguments.prompts), arguments.prompts, arguments)
        out = None if arguments.out is None else local_path(arguments.out, "out")
        done = set() if out is None else continued(out, prompts)
        go_on = functools.partial(_complete_all, arguments, prompts, out, done)
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.completion import Choices
        from mom_jax.cli.runs import console
        from mom_jax.runs import one_device, opened_run
        from mom_jax.training.checkpoint import Choice

    console()
    how = (arguments.temperature, arguments.top_k, arguments.top_p, arguments.state_dtype)
    choice = Choice(arguments.step, arguments.ema)
    with at_hand(arguments.run, arguments.step) as run, opened_run(run, one_device(), choice) as (config, model, _):
        go_on(config, model, Choices(*how))
    return 0


def _complete(arguments: GenerateConfig, prompt: str, config: Any, model: Any, choices: Any) -> None:
    from mom_jax.cli.completion import complete

    how = {"seed": arguments.seed, "stops": arguments.stop, "samples": arguments.num_samples}
    complete(config, model, prompt, arguments.max_new_tokens, _write, choices, **how)
    _write("\n")


def _complete_all(
    arguments: GenerateConfig,
    prompts: Sequence[Prompt],
    out: Path | None,
    done: set[tuple[int, int]],
    config: Any,
    model: Any,
    choices: Any,
) -> None:
    from mom_jax.cli.completions import complete_all

    to_screen = contextlib.nullcontext(lambda record: _write(json_line(record)))
    with to_screen if out is None else appending(out) as write:
        how = {"slots": arguments.slots, "samples": arguments.num_samples, "done": done}
        complete_all(config, model, prompts, write, choices, **how)


def _many(place: str) -> str:
    """The text of the file of prompts."""
    if place == _STDIN:
        return _standard_input("prompts")
    return read_text(local_path(place, "prompts"), "give a file of UTF-8 text", "prompts")


def read_prompt(arguments: GenerateConfig) -> str:
    """The text to continue, from wherever it comes.

    Raises:
        InputError: there is none, or it is not UTF-8.
    """
    if arguments.prompt_file is not None:
        field, place = "prompt_file", arguments.prompt_file
        text = read_text(local_path(place, field), "give a file of UTF-8 text", field)
    elif arguments.prompt == _STDIN:
        field, place, text = "prompt", "- (standard input)", _standard_input("prompt")
    else:
        field, place, text = "prompt", arguments.prompt, arguments.prompt or ""
    if not text:
        raise InputError(field, place, "contains no text to continue")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are no characters
        raise InputError(field, repr(text[:40]), f"is not UTF-8 (character {error.start}); pass UTF-8") from error
    return text


def _standard_input(field: str) -> str:
    try:
        content = sys.stdin.buffer.read() if sys.stdin else b""
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = f"is not UTF-8 (byte {error.start}); convert it, for example with `iconv -t utf-8`"
        raise InputError(field, "- (standard input)", remedy) from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
