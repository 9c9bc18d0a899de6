"""``mom-jax bench``."""

import dataclasses
import datetime
import difflib
import itertools
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console

from mom_jax import terminal
from mom_jax.cli.parsing import parse
from mom_jax.cli.tables import print_results
from mom_jax.errors import InputError
from mom_jax.reports.tables import Table as Listing

DESCRIPTION = """Measures speed and memory on this machine and prints tables in Markdown: on a CPU the operators, the
mixer, length, decoding and compile time; on a GPU or TPU the kernels beside XLA and, where its packages are, beside the
PyTorch reference. Candidates take turns in one process; quiet the machine first.

Example: mom-jax bench operator,length

Example: mom-jax bench --list"""


class Table(NamedTuple):
    """A table, and the function that yields its lines."""

    function: str  # module:name
    title: str
    minutes: str


CPU = {
    "operator": Table("cpu:operator_table", "Gated delta rule, forward + backward, T=2048, H=4, float32", "1"),
    "mixer": Table("cpu:mixer_table", "MoM against one memory, forward + backward", "1"),
    "length": Table("cpu:length_table", "Length: MoM mixer (hidden 256, H=4, K=V=64), forward + backward", "2"),
    "decoding": Table("cpu:decode_table", "Decoding: 4 layers, hidden 512, H=4, K=V=128, batch 1", "1"),
    "compile": Table("cpu:compile_table", "Compile time of a train step, mom-340m sizes", "1"),
    "start": Table("start:start_table", "Starts of commands: with no program kept, and again", "3"),
    "recurrences": Table("rules:rule_table", "Recurrences, forward + backward, T=2048, H=4, float32", "8"),
    "slots": Table("rules:slots_table", "Sparse delta memories by their slots, hidden 256, H=4, V=64, T=2048", "1"),
    "rules": Table("rules:mixture_table", "Mixtures of every rule against one memory, hidden 256, H=4, T=2048", "5"),
}
ACCELERATOR = {
    "operator": Table("accelerator:operator_table", "Gated delta rule over all memories, bfloat16", "3"),
    "layer": Table("accelerator:layer_table", "Layer, bfloat16", "3"),
    "decoding": Table("accelerator:decoding_table", "Decoding, bfloat16", "2"),
}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Which tables."""

    tables: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[TABLES]")] = ""
    """Comma-separated names; all of this machine if none is given."""
    list: bool = False
    """Show the tables of this machine, and about how long each takes."""
    tiny: bool = False
    """The tables of a GPU or TPU once in a small size, on any machine, to see that they run."""


def main(args: Sequence[str]) -> int:
    """Parses the arguments and prints the tables."""
    arguments = parse(BenchConfig, args, prog="mom-jax bench", description=DESCRIPTION)
    # JAX loads only now, after the arguments have proved sound.
    import jax

    from mom_jax.benchmarks.timing import machine

    known = CPU if jax.default_backend() == "cpu" and not arguments.tiny else ACCELERATOR
    names = _names(arguments.tables, known)
    if arguments.list:
        _list(known)
        return 0
    print(f"{datetime.date.today()}; {machine()}\n")
    for name in names:
        print(f"### {known[name].title}\n", flush=True)
        table = pkgutil.resolve_name(f"mom_jax.benchmarks.{known[name].function}")
        sizes = [pkgutil.resolve_name("mom_jax.benchmarks.accelerator:TINY")] if arguments.tiny else []
        _show(known[name].title, table(*sizes), terminal.console())
        print()
    return 0


def _show(title: str, lines: Iterable[str], out: Console) -> None:
    """Prints lines of Markdown as they are measured; on a terminal, when all are, with tables that fit it."""
    if not out.is_terminal:
        for line in lines:
            print(line, flush=True)
        return
    with terminal.working() as report:
        report(f"measuring: {title}")
        lines = list(lines)
    for is_table, block in itertools.groupby(lines, key=lambda line: line.startswith("|")):
        if is_table:
            heading, _, *rows = ([cell.strip() for cell in line[2:-2].split(" | ")] for line in block)
            print_results(Listing("", heading, rows), out)
        else:
            out.print(*block, sep="\n")


def _names(tables: str, known: dict[str, Table]) -> list[str]:
    names = [name for name in map(str.strip, tables.split(",")) if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known) or list(known)
            raise InputError("tables", name, f"unknown here; did you mean {' or '.join(close)}?")
    return names or list(known)


def _list(known: dict[str, Table]) -> None:
    rows = [[name, table.title, table.minutes] for name, table in known.items()]
    print_results(Listing("", ["table", "what", "minutes"], rows), terminal.console())
