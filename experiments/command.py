"""``mom-jax experiment NAME``."""

import contextlib
import dataclasses
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from mom_jax import terminal
from mom_jax.cli.notes import note
from mom_jax.cli.parsing import Place, parse
from mom_jax.cli.tables import print_results
from mom_jax.errors import InputError, need
from mom_jax.fields import check_fields
from mom_jax.paths import absolute, why_not_writable
from mom_jax.reports.tables import Table

from .registry import EXPERIMENTS, SCALES, Contrast, Experiment, Point, Record, check_name, get_experiment
from .sweep import belonging, missing, read_records, run_sweep, sweep_folder

DESCRIPTION = f"""Runs an experiment: each of its points that is missing, then a table and plots. Every finished
point is a line of JSON in the sweep's folder, so a sweep that was stopped goes on, and machines that share
the folder can each do a shard. Experiments: {", ".join(EXPERIMENTS)}.

Example: mom-jax experiment mqar --scale tiny

Example: mom-jax experiment recall --scale paper --only size=mom-340m model=MoM --dry-run

Example: mom-jax experiment --list"""


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Which experiment, and which part of it."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
    """Name of the experiment."""
    list: bool = False
    """Show all experiments and how much of each is done."""
    scale: Literal["tiny", "small", "medium", "paper"] = "tiny"
    """tiny: proves in minutes that the code runs; small: the evidence that two CPU cores or a GPU can give in hours;
    medium: a GPU for a day, 60M parameters on 1B tokens or needles; paper: the published sizes."""
    only: tuple[str, ...] = ()
    """Do only points with these values, as in: --only model=MoM size=mom-340m."""
    dry_run: bool = False
    """Run nothing and read no data: say what the points take."""
    recipe: Place | None = None
    """Run nothing: write a config file for each language model and a script into this folder."""
    shard: str = "0/1"
    """Do only shard i of n, written i/n."""
    plot: bool = False
    """Draw only the finished points; run nothing."""
    out: Place = "runs/experiments"
    """Folder for the sweeps."""

    def __post_init__(self):
        check_fields(self)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise InputError("shard", self.shard, "must be i/n with 0 <= i < n, for example 0/4")
        if self.list == bool(self.name):
            raise InputError("experiment", self.name or "''", "give a name or --list, see --help")
        if self.name:
            check_name(self.name)
        for value in self.only:
            if "=" not in value:
                raise InputError("only", value, "must be FIELD=VALUE, for example model=MoM")

    @property
    def part(self) -> tuple[int, int]:
        """``shard`` as numbers."""
        index, _, count = self.shard.partition("/")
        return int(index), int(count)


def main(args: Sequence[str]) -> int:
    """Parses the arguments, runs what is missing, prints the table and draws the plots."""
    arguments = parse(ExperimentConfig, args, prog="mom-jax experiment", description=DESCRIPTION)
    out = terminal.console(outlives_reader=True)
    need("matplotlib", "report", "experiment", arguments.name or "--list")
    if arguments.list:
        _list(arguments.out, out)
        return 0
    experiment, folder = get_experiment(arguments.name), sweep_folder(arguments.out, arguments.name, arguments.scale)
    experiment.check_scale(arguments.name, arguments.scale)
    points = _chosen(experiment.points(arguments.scale), arguments.only)
    if arguments.dry_run:
        _plan(experiment, points, arguments.part, out)
        return 0
    if arguments.recipe is not None:
        _write_recipe(arguments, experiment, points, out)
        return 0
    if not arguments.plot:
        with _kept_programs():
            run_sweep(experiment, points, folder, arguments.part, lambda *progress: _report(out, *progress))
    records, complaints = experiment.sound(belonging(points, read_records(folder, note)))
    for complaint in complaints:
        note(f"{complaint}; it is left out")
    if not records:
        command = f"mom-jax experiment {arguments.name} --scale {arguments.scale}"
        remedy = f"has no finished point to draw; run {command} first"
        raise InputError("out", folder, remedy)
    _show(experiment, records, len(points), out)
    _compare(experiment.compared(arguments.scale, records), arguments.scale, out)
    _draw(experiment, records, folder, out)
    return 0


def _chosen(points: list[Point], only: Sequence[str]) -> list[Point]:
    """The points with these values.

    Raises:
        InputError: none has them.
    """
    for field, _, value in (wanted.partition("=") for wanted in only):
        values = dict.fromkeys(str(point[field]) for point in points if field in point)
        if value not in values:
            known = f"choose one of {', '.join(values)}" if values else f"points have {', '.join(points[0])}"
            raise InputError("only", f"{field}={value}", f"no point has it; {known}")
        points = [point for point in points if str(point.get(field)) == value]
    return points


def _plan(experiment: Experiment, points: list[Point], part: tuple[int, int], out: Console) -> None:
    from .dry_run import HEADING, planned, rows

    mine = points[part[0] :: part[1]]
    out.print(f"{len(mine)} points")
    costs = planned(experiment, mine)
    if costs:
        title = "language models; hours of an H100 at 40 % of its peak, without evaluation"
        print_results(Table(title, HEADING, rows(costs)), out)


def _write_recipe(arguments: ExperimentConfig, experiment: Experiment, points: list[Point], out: Console) -> None:
    from .recipes import write_recipe

    assert arguments.recipe is not None
    sweeps = absolute(arguments.out, "out")
    only = ["--only", *arguments.only] if arguments.only else []
    words = ["mom-jax", "experiment", arguments.name, "--scale", arguments.scale, *only, "--out", sweeps]
    folder = Path(absolute(arguments.recipe, "recipe"))
    for path in write_recipe(experiment, points, shlex.join(words), Path(sweeps), folder):
        out.print(f"recipe: {path}", soft_wrap=True, markup=False, highlight=False)


@contextlib.contextmanager
def _kept_programs() -> Iterator[None]:
    """Points that differ in seeds share compiled programs, which are kept in a folder for the time of the sweep."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", folder)
        yield


def _report(out: Console, done: int, total: int, record: Record) -> None:
    shown = " ".join(str(value) for value in record["point"].values())
    result = ", ".join(f"{k} {v:.4g}" for k, v in record["result"].items() if isinstance(v, float))
    out.print(f"{done}/{total} {shown}: {result} ({record['seconds']:.0f} s)")


def _show(experiment: Experiment, records: list[Record], total: int, out: Console) -> None:
    heading, *rows = experiment.table(records)
    print_results(Table(f"{len(records)} of {total} points", heading, rows), out)
    for line in experiment.findings(records):
        out.print(f"- {line}")


def _compare(contrasts: list[Contrast], scale: str, out: Console) -> None:
    from .common.statistics import HEADING, METHOD, judge, row

    if scale == "tiny":
        note("the tiny scale proves that the code runs, and claims nothing")
    if contrasts:
        title = f"{len(contrasts)} comparisons. {METHOD}"
        print_results(Table(title, HEADING, [row(judged) for judged in judge(contrasts)]), out)


def _draw(experiment: Experiment, records: list[Record], folder: Path, out: Console) -> None:
    why = why_not_writable(folder)
    if why:
        note(f"{folder}: no plots are drawn there ({why}); mom-jax report {folder} --out FOLDER shows them elsewhere")
        return
    for path in experiment.draw(records, folder):
        out.print(f"plot: {path}")


def _list(base: str, out: Console) -> None:
    rows = [[name, about, *(_done(base, name, scale) for scale in SCALES)] for name, (_, about) in EXPERIMENTS.items()]
    print_results(Table("experiments, and points done", ["experiment", "shows", *SCALES], rows), out)


def _done(base: str, name: str, scale: str) -> str:
    experiment = get_experiment(name)
    if scale not in experiment.scales:
        return "–"
    points = experiment.points(scale)
    left = missing(points, read_records(sweep_folder(base, name, scale), note))
    return f"{len(points) - len(left)} of {len(points)}"
