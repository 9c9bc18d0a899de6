"""The page: sections into HTML."""

from collections.abc import Sequence
from pathlib import Path

from mom_jax import __version__
from mom_jax.reports.html import render
from mom_jax.training.sittings import now

from .beside import beside_paper
from .runs import Run, show_run
from .sections import Section
from .side_by_side import compare_runs
from .sweeps import Sweep, show_comparisons, show_sweep


def make_page(runs: Sequence[Run], sweeps: Sequence[Sweep]) -> str:
    """One HTML page that loads nothing from elsewhere.

    Args:
        runs: with names that differ; several are compared.
        sweeps: of experiments.

    Raises:
        InputError: a file of a run or sweep is not of the form that this version writes.
    """
    sections: list[Section | None] = [compare_runs(list(runs)) if len(runs) > 1 else None, beside_paper(list(runs))]
    sections += show_comparisons(sweeps)
    sections += [show_run(run) for run in runs] + [show_sweep(sweep) for sweep in sweeps]
    shown = [section for section in sections if section]
    return render(Path(__file__).with_name("page.html"), sections=shown, date=now(), version=__version__)
