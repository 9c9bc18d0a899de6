"""``mom-jax report PATH...``."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mom_jax.cli.parsing import Place, parse
from mom_jax.errors import InputError, need
from mom_jax.fields import check_fields
from mom_jax.files import write_atomically
from mom_jax.paths import local_path, output_folder, why_not_writable

DESCRIPTION = """Makes one HTML page of finished runs (folders of mom-jax train, or published models that were
evaluated) and of sweeps (folders of mom-jax experiment): what each was, held-out scores, tasks beside the paper's
numbers, plots; several runs are compared. The page stands by itself: nothing is loaded from a network.

Example: mom-jax report runs/mom-tiny runs/mom-tiny-gla runs/experiments/mqar-tiny

Example: mom-jax report /shared/runs/mom-340m --out pages/mom-340m.html"""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What the page shows, and where it goes."""

    paths: Annotated[tuple[Place, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")] = ()
    """Folders of runs and sweeps."""
    out: Place | None = None
    """The page (.html), or the folder for it; default: report.html in the run's or sweep's folder, and for several a
    page named after them beside the first."""

    def __post_init__(self):
        check_fields(self)
        if not self.paths:
            raise InputError("paths", "''", "give the folder of a run or a sweep: mom-jax report runs/mom-tiny")


def main(args: Sequence[str]) -> int:
    """Parses the arguments, reads the folders, writes the page."""
    arguments = parse(ReportConfig, args, prog="mom-jax report", description=DESCRIPTION)
    for package in ("jinja2", "matplotlib"):
        need(package, "report", "paths", arguments.paths[0])
    folders = list(dict.fromkeys(local_path(path, "paths").resolve() for path in arguments.paths))
    # JAX loads only now, after the arguments have proved sound.
    from .page import make_page
    from .runs import read_run
    from .sweeps import is_sweep, read_sweep

    sweeps = [folder for folder in folders if is_sweep(folder)]
    runs = [folder for folder in folders if folder not in sweeps]
    for folder in runs:
        _check(folder)
    out = _page(arguments.out, folders)
    named = zip(runs, _names(runs), strict=True)
    page = make_page([read_run(folder, name) for folder, name in named], [read_sweep(folder) for folder in sweeps])
    write_atomically(out, page.encode(errors="backslashreplace"))
    print(f"report: {out}")
    return 0


def _page(out: str | None, folders: Sequence[Path]) -> Path:
    """Where the page goes. One of one folder lies in it, so that none overwrites that of another.

    Raises:
        InputError: nothing can be written there.
    """
    if out is not None:
        path = local_path(out, "out")
        is_page = path.suffix.lower() in (".html", ".htm") and not os.path.isdir(path)
        return output_folder(path.parent if is_page else path, "out") / (path.name if is_page else _file_name(folders))
    folder = folders[0] if len(folders) == 1 else folders[0].parent
    why = why_not_writable(folder)
    if why:
        raise InputError("out", folder, f"cannot be written to ({why}); give another place with --out")
    return folder / ("report.html" if len(folders) == 1 else _file_name(folders))


def _file_name(folders: Sequence[Path]) -> str:
    """After the folders, so that it is another for others."""
    name = "+".join(_names(folders)).replace("/", "-")
    if len(os.fsencode(name)) > _LONGEST:
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, folders))).hexdigest()[:8]
        name = f"{os.fsencode(folders[0].name)[:_LONGEST].decode(errors='ignore')}+{len(folders) - 1}-{digest}"
    return f"{name}.html"


_LONGEST = 120  # bytes of a page's name


def _check(folder: Path) -> None:
    """Raises `InputError` for a folder that holds no run; it names those inside that do."""
    from .runs import is_run
    from .sweeps import is_sweep

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
