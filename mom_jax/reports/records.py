"""What a run has logged, as reports read it: what is damaged or of another form is left out and said."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError
from mom_jax.files import readable_lines, with_nan
from mom_jax.training.log import METRICS_FILE, HeldOutRecord, TrainingRecord
from mom_jax.training.sittings import SITTINGS_FILE, Sitting

Complain = Callable[[str], None]  # gets a line for each thing that is left out

_BY_LAYER = ("load", "routing_entropy", "contribution", "dead_memories", "routing_churn")
_MAX_STEP = 2**53  # what a plot can place


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a run, NaN where a file has null: those of training, and those of held-out losses."""

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.training)


def read_records(folder: Path, complain: Complain) -> Records:
    """The records in a run's ``metrics.jsonl``; none where there is no such file."""
    form: Any = TrainingRecord | HeldOutRecord  # to type checkers no type
    lines = readable_lines(folder / METRICS_FILE, form, complain)
    records = [with_nan(record) for record in lines if 0 <= record["step"] < _MAX_STEP]
    if len(records) < len(lines):
        complain(f"{folder / METRICS_FILE}: {len(lines) - len(records)} records of impossible steps are left out")
    for name in _BY_LAYER:
        _leave_out_other_shapes(records, name, lambda message: complain(f"{folder / METRICS_FILE}: {message}"))
    return Records([r for r in records if "loss" in r], [r for r in records if "loss" not in r])


def nothing_logged(folder: Path, complaints: Sequence[str]) -> InputError:
    """What to say of a run without records; ``complaints`` are what `read_records` complained of."""
    path, anew = folder / METRICS_FILE, "train it further (a finished run by a larger --steps)"
    damaged = [complaint for complaint in complaints if str(path) in complaint]
    if not damaged:
        problem = f"nothing of it can be read: {complaints[0]}" if complaints else "has no metrics yet"
        return InputError("run", str(folder), f"{problem}; {anew}")
    problem = f"holds no record that can be read ({damaged[0]})"
    remedy = f"restore it, or {anew}, which sets it aside and begins it anew; the checkpoints are not affected"
    return InputError("metrics", path, f"{problem}; {remedy}")


def read_sittings(folder: Path, complain: Complain) -> list[Sitting]:
    """The lines of a run's ``sittings.jsonl``; none where there is no such file."""
    return readable_lines(folder / SITTINGS_FILE, Sitting, complain)


def _leave_out_other_shapes(records: list[dict[str, Any]], name: str, complain: Complain) -> None:
    """Takes a field out of the records where it is no array, or not one of the shape that most have."""
    shapes = {i: _shape(record[name]) for i, record in enumerate(records) if name in record}
    counts = collections.Counter(shape for shape in shapes.values() if shape is not None)
    usual = max(counts, key=counts.__getitem__, default=None)
    others = [i for i, shape in shapes.items() if shape is None or shape != usual]
    for i in others:
        del records[i][name]
    if others:
        complain(f"{name} of {len(others)} records is left out, because it does not have the shape of the others")


def _shape(value: list[Any]) -> tuple[int, ...] | None:
    """Of a list, or of a list of lists of one length; None where they are of several, or empty."""
    lengths = {len(item) for item in value if isinstance(item, list)}
    shape = (len(value), *lengths)
    return shape if len(lengths) < 2 and all(shape) else None
