"""``mom-jax data prepare``."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.cli.parsing import Place, parse
from mom_jax.data.config import DataConfig, TextConfig
from mom_jax.errors import InputError
from mom_jax.fields import Range, check_fields

DESCRIPTION = """Tokenises text into memory-mapped shards that training reads with --data.path OUT. Run again
after an interruption, it continues where it stopped; the same input gives the same bytes whatever the number of workers
or machines.

Example: mom-jax data prepare shards/wiki --data.path 'wiki/*.jsonl.gz' --data.tokenizer mistral --shard 0/4"""

USAGE = """usage: mom-jax data prepare OUT [options]

mom-jax data prepare --help explains the options.

example: mom-jax data prepare shards/texts --data.path 'texts/*.txt'
"""


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What to tokenise, and where to."""

    out: Annotated[Place, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder for the shards."""
    data: TextConfig = dataclasses.field(default_factory=TextConfig)
    workers: Annotated[int, Range(least=1, most=2**12)] | None = None
    """Processes; default: one per core."""
    shard: str = "0/1"
    """i/n: do the i-th of n parts, counted from 0, so that n machines share the work."""
    dry_run: bool = False
    """Say what would be read, held out and left out, and write nothing."""

    def __post_init__(self):
        check_fields(self)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise InputError("shard", self.shard, "must be i/n with 0 <= i < n, for example 0/4")

    @property
    def config(self) -> DataConfig:
        """The text, with windows that preparing does not look at."""
        return DataConfig(**{field.name: getattr(self.data, field.name) for field in dataclasses.fields(TextConfig)})


def main(args: Sequence[str]) -> int:
    """Finds the sub-verb (there is one, ``prepare``) and runs it."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] != "prepare":
        close = difflib.get_close_matches(args[0], ["prepare"])
        raise InputError(
            "data", args[0], "unknown; " + ("did you mean prepare?" if close else "write mom-jax data prepare OUT")
        )
    arguments = parse(PrepareConfig, args[1:], prog="mom-jax data prepare", description=DESCRIPTION)
    if arguments.dry_run:
        return _dry_run(arguments)
    from mom_jax.data.prepare import prepare

    part, parts = map(int, arguments.shard.split("/"))
    done = prepare(arguments.config, arguments.out, workers=arguments.workers, shard=(part, parts))
    print(f"{arguments.out}: {done.written} shards written, {done.kept} kept")
    print(*done.notes, sep="\n")
    if done.missing:
        print(f"{done.missing} shards are left to the other parts of --shard i/{parts}")
    return 0


def _dry_run(arguments: PrepareConfig) -> int:
    from mom_jax.data.amounts import describe_plan
    from mom_jax.data.plan import plan
    from mom_jax.data.remote import with_local_copies
    from mom_jax.data.tokenizers import load_tokenizer

    load_tokenizer(arguments.config.tokenizer)  # or the work would end where it begins
    print(*describe_plan(plan(with_local_copies(arguments.config)), arguments.data.held_out_fraction), sep="\n")
    return 0
