"""The experiments by name; imports none of them, and no JAX."""

import dataclasses
import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError

Point = dict[str, Any]  # JSON: all that determines one result
Record = dict[str, Any]  # a finished point: ``point``, ``result``, ``seconds``, ``date``, ``versions``

SCALES = ("tiny", "paper")
# name: (module with EXPERIMENT, what it shows)
EXPERIMENTS = {
    "mqar": ("experiments.mqar", "recall of key-value pairs at equal state and at equal parameters"),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a module of an experiment offers.

    Attributes:
        points: the points of a scale (``tiny`` or ``paper``), in the order in which they are worth having.
        run: one point's result, JSON-ready; gets a folder where it may keep models that it trains.
        plot: draws the records into a folder and returns the pictures; gets at least one record.
        table: rows of a summary of the records, the heading first.
    """

    points: Callable[[str], list[Point]]
    run: Callable[[Point, Path], dict[str, Any]]
    plot: Callable[[list[Record], Path], list[Path]]
    table: Callable[[list[Record]], list[list[str]]]


def get_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InputError: an unknown name, with the closest known ones.
    """
    check_name(name)
    return importlib.import_module(EXPERIMENTS[name][0]).EXPERIMENT


def check_name(name: str) -> None:
    """Raises `InputError` for a name that is not in `EXPERIMENTS`."""
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS) or list(EXPERIMENTS)
        raise InputError("experiment", name, f"unknown; did you mean {' or '.join(close)}?")
