"""A sweep of an experiment as a section: its table and plots, and every point with every seed."""

import dataclasses
import inspect
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mom_jax.drawing import picture
from mom_jax.errors import InputError
from mom_jax.reports.tables import Table
from mom_jax.training.config import flat

from ..common.statistics import HEADING, METHOD, judge, row
from ..registry import EXPERIMENTS, SCALES, Contrast, Experiment, Record, get_experiment, get_module
from ..sweep import belonging, read_records
from .questions import Answer, answers
from .sections import Picture, Section, readable, shown


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's finished points.

    Attributes:
        folder: of the sweep.
        name, scale: of the experiment.
        records: those that belong to it, in order.
        total: how many points it has when it is finished.
        other_records: records of other points, which an earlier version left.
        left_out: damaged records, and those that cannot be tabulated, a line each.
    """

    folder: Path
    name: str
    scale: str
    records: list[Record]
    total: int
    other_records: int
    left_out: list[str]

    @property
    def experiment(self) -> Experiment:
        """What the sweep is of."""
        return get_experiment(self.name)


def is_sweep(folder: Path) -> bool:
    """Whether the folder holds points of a sweep."""
    return any(folder.glob("points*.jsonl"))


def read_sweep(folder: Path) -> Sweep:
    """Reads the records of a sweep.

    Raises:
        InputError: the folder is not named as a sweep's is, records that cannot be understood, or none.
    """
    name, _, scale = folder.name.rpartition("-")
    if name not in EXPERIMENTS or scale not in get_experiment(name).scales:
        named = f"EXPERIMENT-SCALE, with EXPERIMENT one of {', '.join(EXPERIMENTS)} and SCALE of {', '.join(SCALES)}"
        raise InputError("sweep", folder, f"holds points of an unknown experiment; a sweep's folder is named {named}")
    experiment, left_out = get_experiment(name), list[str]()
    points, all_records = experiment.points(scale), read_records(folder, left_out.append)
    point_records = belonging(points, all_records)
    records, complaints = experiment.sound(point_records)
    left_out += complaints
    if not records:
        problem = f"has no finished point that can be read ({left_out[0]})" if left_out else "has no finished point"
        remedy = f"run mom-jax experiment {name} --scale {scale} --out {folder.parent}"
        raise InputError("sweep", folder, f"{problem}; {remedy}")
    return Sweep(folder, name, scale, records, len(points), len(all_records) - len(point_records), left_out)


def show_sweep(sweep: Sweep) -> Section:
    """The experiment's own table and plots, what it is, and all of its points.

    Raises:
        InputError: records that are not of the form that this version writes.
    """
    return readable(sweep.folder, lambda: _section(sweep))


def show_comparisons(sweeps: Sequence[Sweep]) -> list[Section]:
    """The questions of the page, and all comparisons of its sweeps, corrected for their number; none of tiny ones.

    Raises:
        InputError: as `show_sweep`.
    """
    contrasts: list[Contrast] = []
    for sweep in sweeps:
        contrasts += readable(sweep.folder, lambda sweep=sweep: sweep.experiment.compared(sweep.scale, sweep.records))
    if not contrasts:
        return []
    judged = judge(contrasts)
    small = {sweep.name: sweep.records for sweep in sweeps if sweep.scale == "small"}
    sections = [_answered(answer) for answer in answers(small, judged)] if small else []
    table = Table("", HEADING, [row(one) for one in judged], f"{len(judged)} comparisons. {METHOD}")
    return [*sections, Section("Comparisons", tables=[table])]


def _answered(answer: Answer) -> Section:
    section = Section(answer.question, "question", notes=answer.lines)
    if answer.draw:
        section.pictures.append(Picture(answer.question, picture(answer.draw)))
    return section


def _section(sweep: Sweep) -> Section:
    heading, *rows = sweep.experiment.table(sweep.records)
    command = f"mom-jax experiment {sweep.name} --scale {sweep.scale}"
    section = Section(f"{sweep.name}, {sweep.scale}", "experiment", _facts(sweep), command)
    section.facts.extend(("found", line) for line in sweep.experiment.findings(sweep.records))
    if sweep.scale == "tiny":
        section.facts.append(("claims", "nothing: the tiny scale proves that the code runs"))
    section.tables.append(Table(EXPERIMENTS[sweep.name][1].capitalize(), heading, rows))
    section.left_out.extend(sweep.left_out)
    with tempfile.TemporaryDirectory() as folder:
        for path in sweep.experiment.draw(sweep.records, Path(folder)):
            section.pictures.append(Picture(f"{sweep.name}: {path.stem.replace('_', ' ')}", path.read_bytes()))
    section.more.append(("every point", _points(sweep.records)))
    section.more.append(("about this experiment", _about(sweep)))
    return section


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    points = f"{len(sweep.records):,} of {sweep.total:,}" + ", not finished" * (len(sweep.records) < sweep.total)
    if sweep.other_records:
        points += f"; {sweep.other_records:,} records of other points, which an earlier version left, are passed over"
    facts = [("folder", str(sweep.folder)), ("points", points)]
    seeds = sorted({record["point"]["seed"] for record in sweep.records if "seed" in record["point"]})
    if seeds:
        facts.append(("seeds", " ".join(map(str, seeds))))
    facts.append(("time", f"{sum(record['seconds'] for record in sweep.records) / 60:,.1f} minutes in all"))
    dates = sorted(record["date"] for record in sweep.records if "date" in record)
    facts.append(("done", f"{dates[0]} to {dates[-1]} UTC" if dates else "date was not recorded"))
    for versions in dict.fromkeys(json.dumps(record["versions"]) for record in sweep.records):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())))
    return facts + [(name, shown(value)) for name, value in _fixed(sweep.records).items()]


def _fixed(records: list[Record]) -> dict[str, Any]:
    """The fields that all of several points share."""
    points = [flat(record["point"]) for record in records]
    return {
        name: value for name, value in points[0].items()
        if len(points) > 1 and all(name in point and point[name] == value for point in points)
    }  # fmt: skip


def _points(records: list[Record]) -> Table:
    fixed = _fixed(records)
    points = [flat(record["point"]) for record in records]
    results = [_by_seed(record["result"]) for record in records]
    varied = [name for name in _names(points) if name not in fixed]
    measured = _names(results)
    rows = [
        [shown(point.get(name, "–")) for name in varied]
        + [shown(result.get(name, "–")) for name in measured]
        + [f"{record['seconds']:.1f}"]
        for point, result, record in zip(points, results, records, strict=True)
    ]
    return Table("", [*varied, *measured, "seconds"], rows)


def _by_seed(result: dict[str, Any]) -> dict[str, Any]:
    """A result by name; of one with several runs the numbers of each run, without its course."""
    own = flat({name: value for name, value in result.items() if name != "runs"})
    runs = [
        flat({name: value for name, value in run.items() if not isinstance(value, list)})
        for run in result.get("runs", ())
    ]
    return {name: [run.get(name) for run in runs] for name in (runs[0] if runs else ())} | own


def _names(items: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for item in items for name in item))


def _about(sweep: Sweep) -> str:
    """The text at the head of the experiment's module: what is compared, the paper's numbers and ours."""
    return inspect.cleandoc(get_module(sweep.name).__doc__ or "")
