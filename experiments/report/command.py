"""``mom-jax report PATH...``."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mom_jax.cli.parsing import Place, parse
from mom_jax.errors import InputError
from mom_jax.fields import check_fields

DESCRIPTION = """Makes one HTML page of finished runs (folders of mom-jax train, or published models that were
evaluated) and of sweeps (folders of mom-jax experiment): what each was, held-out scores, tasks beside the paper's
numbers, plots; several runs are compared. The page stands by itself: nothing is loaded from a network.

Example: mom-jax report runs/mom-tiny runs/mom-tiny-gla runs/experiments/mqar-tiny

Example: mom-jax report runs/mom-340m --out pages/mom-340m.html"""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What the page shows, and where it goes."""

    paths: Annotated[tuple[Place, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")] = ()
    """Folders of runs and sweeps."""
    out: Place | None = None
    """The page; default: report.html beside the first folder."""

    def __post_init__(self):
        check_fields(self)
        if not self.paths:
            raise InputError("paths", "''", "give the folder of a run or a sweep: mom-jax report runs/mom-tiny")


def main(args: Sequence[str]) -> int:
    """Parses the arguments, reads the folders, writes the page."""
    wanted = parse(ReportConfig, args, prog="mom-jax report", description=DESCRIPTION)
    folders = list(dict.fromkeys(Path(path).expanduser().resolve() for path in wanted.paths))
    out = folders[0].parent / "report.html" if wanted.out is None else Path(wanted.out).expanduser()
    if out.is_dir() or not out.parent.is_dir():
        raise InputError("out", out, "is a folder; give a file" if out.is_dir() else "lies in a folder that is missing")
    # JAX loads only now, after the arguments have proved sound.
    from experiments.report.page import make_page
    from experiments.report.runs import read_run
    from experiments.report.sweeps import is_sweep, read_sweep

    sweeps = [folder for folder in folders if is_sweep(folder)]
    runs = [folder for folder in folders if folder not in sweeps]
    for folder in runs:
        _check(folder)
    named = zip(runs, _names(runs), strict=True)
    page = make_page([read_run(folder, name) for folder, name in named], [read_sweep(folder) for folder in sweeps])
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    print(f"report: {out}")
    return 0


def _check(folder: Path) -> None:
    """Raises `InputError` for a folder that holds no run; it names those inside that do."""
    from experiments.report.runs import is_run
    from experiments.report.sweeps import is_sweep

    if is_run(folder):
        return
    if not folder.is_dir():
        raise InputError("paths", folder, "no such folder")
    inside = [str(path) for path in sorted(folder.iterdir()) if path.is_dir() and (is_run(path) or is_sweep(path))]
    hint = f"; did you mean {' '.join(inside[:4])}?" if inside else ""
    raise InputError("paths", folder, f"is neither a run (config.json) nor a sweep (points.jsonl){hint}")


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path that tell it from the others."""
    names = []
    for folder in folders:
        count = 1
        while sum(other.parts[-count:] == folder.parts[-count:] for other in folders) > 1:
            count += 1
        names.append("/".join(folder.parts[-count:]))
    return names
