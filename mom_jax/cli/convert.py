"""``mom-jax convert SRC DST``."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from mom_jax.cli.parsing import OfCheckpoint, Place, Run, parse
from mom_jax.data.config import TokenizerName
from mom_jax.errors import InputError, named_as
from mom_jax.fields import Count, Name, Range, check_fields
from mom_jax.importing import loading
from mom_jax.paths import check_local, local_path
from mom_jax.training.run_places import at_hand

DESCRIPTION = """Converts between a published model (a Hugging Face folder: config.json, safetensors files, tokenizer)
and a run. SRC decides the direction: a published model becomes a run for eval and generate, a run becomes a folder
that the PyTorch library loads.

Example: mom-jax convert MoM-Gated-Deltanet-340M runs/published-340m

Example: mom-jax convert runs/mom-340m published/mom-340m --dtype bfloat16

Example: mom-jax convert --from gated_deltanet --to mom gated-deltanet-340m runs/mixture

With --to mom a published model of single memories becomes a run of a mixture that begins as it does: every memory is a
copy of its memory, the routed ones with a little noise, and the router is 0. Train it on with
mom-jax train --config runs/mixture/config.json --data.path shards --steps 1000"""


@dataclasses.dataclass(frozen=True)
class ConvertConfig(OfCheckpoint):
    """What to convert, and into what."""

    src: Annotated[Run, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A published model's folder, or a run's, or its address."""
    dst: Annotated[Place, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to write; it must not exist, or be empty."""
    from_: Annotated[Name | None, tyro.conf.arg(name="from")] = None
    """Model type that SRC must have, such as gated_deltanet; goes with --to."""
    to: Literal["mom"] | None = None
    """Make a mixture (mom) of a published model of single memories."""
    num_memories: Annotated[int, Range(least=1, most=2**10)] = 4
    """Of the mixture: routed memories."""
    topk: Count = 2
    """Of the mixture: memories that each token is written to and read from."""
    shared_mem: bool = True
    """Of the mixture: one more memory sees every token."""
    noise: Annotated[float, Range(least=0, most=1)] = 0.01
    """Of the mixture: noise on the routed memories' projections, over their standard deviation."""
    tokenizer: TokenizerName | None = None
    """Tokenizer to store instead of the model's own: bytes, mistral, a file, a folder or a hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which a published model stores its parameters."""
    max_shard_bytes: Annotated[int, Range(least=1, below=2**63)] = 5 * 10**9
    """Size of a published model's files; a larger model is split."""

    def __post_init__(self):
        check_fields(self)
        check_local(self.dst, "dst")
        for field in _OF_MIXTURES:
            if self.to is None and getattr(self, field) != getattr(ConvertConfig, field):
                raise InputError(field.rstrip("_"), getattr(self, field), "goes with --to mom")


_OF_MIXTURES = ("num_memories", "topk", "shared_mem", "noise", "from_")


def main(args: Sequence[str]) -> int:
    """Parses the arguments, converts, says what was written."""
    arguments = parse(ConvertConfig, args, prog="mom-jax convert", description=DESCRIPTION)
    with at_hand(arguments.src, arguments.step, "src") as source:
        return _convert(dataclasses.replace(arguments, src=source))


def _convert(arguments: ConvertConfig) -> int:
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.runs import console
        from mom_jax.interop.published import is_published
        from mom_jax.runs import one_device
        from mom_jax.training.checkpoint import Choice
        from mom_jax.training.conversion import run_to_published

    out, choice = console(), Choice(arguments.step, arguments.ema)
    if arguments.to is not None or is_published(local_path(arguments.src, "src")):
        choice.refuse(arguments.src)
        if (arguments.dtype, arguments.max_shard_bytes) != (ConvertConfig.dtype, ConvertConfig.max_shard_bytes):
            remedy = "would be a run: --dtype and --max-shard-bytes are for published models"
            raise InputError("dst", arguments.dst, remedy)
        with named_as("src", "directory"):
            line = _to_run(arguments)
    else:
        with named_as("src", "run"):
            run_to_published(
                arguments.src,
                arguments.dst,
                one_device(),
                choice=choice,
                tokenizer=arguments.tokenizer,
                dtype=arguments.dtype,
                max_shard_bytes=arguments.max_shard_bytes,
            )
        line = f"published model: {arguments.dst}"
    out.print(line)
    return 0


def _to_run(arguments: ConvertConfig) -> str:
    """From a published model; returns what to say."""
    from mom_jax.models.upcycling import MixtureOptions
    from mom_jax.runs import one_device
    from mom_jax.training.conversion import published_to_run, single_to_mixture

    if arguments.to is None:
        published_to_run(arguments.src, arguments.dst, one_device(), arguments.tokenizer)
        return f"run: {arguments.dst}; try mom-jax generate {arguments.dst} --prompt 'Once'"
    options = MixtureOptions(arguments.num_memories, arguments.topk, arguments.shared_mem, arguments.noise)
    named = {"model_type": arguments.from_, "tokenizer": arguments.tokenizer}
    single_to_mixture(arguments.src, arguments.dst, one_device(), options, **named)
    return f"run: {arguments.dst}; train it on with mom-jax train --config {arguments.dst}/config.json --data.path ..."
