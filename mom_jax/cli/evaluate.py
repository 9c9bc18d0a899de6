"""``mom-jax eval RUN``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.errors import InputError

DESCRIPTION = """Scores the newest checkpoint of a run on held-out text: loss, perplexity, bits per byte,
loss by position, load of each memory. Prints tables, writes eval.json and renews report.md in the run's folder.
A published model's folder (see mom-jax convert) serves as a run.

Example: mom-jax eval runs/mom-tiny --sequence-length 1024"""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What to score, and on what."""

    run: tyro.conf.Positional[str]
    """Folder of the run, or of a published model."""
    sequence_length: int | None = None
    """Tokens per window; default: as in training."""
    batch_size: int | None = None
    """Windows per batch; default: as in training."""
    max_windows: int | None = None
    """Score about this many windows, evenly spread, instead of all held-out text."""

    def __post_init__(self):
        for field in ("sequence_length", "batch_size", "max_windows"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(field, value, "must be at least 1")


def main(args: Sequence[str]) -> int:
    """Parses the arguments, scores the run, prints and writes the result."""
    wanted = parse(EvalConfig, args, prog="mom-jax eval", description=DESCRIPTION)
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.runs import console, evaluate_run, print_evaluation
    from mom_jax.training.log import read_metrics
    from mom_jax.training.report import write_report

    out = console()
    changes = {
        name: value for name in ("sequence_length", "batch_size") if (value := getattr(wanted, name)) is not None
    }
    evaluation, _ = evaluate_run(wanted.run, max_windows=wanted.max_windows, **changes)
    print_evaluation(evaluation, out)
    if read_metrics(Path(wanted.run).expanduser()):  # a converted model was not trained here
        report = write_report(wanted.run, evaluation)
        out.print(f"report: {report}", highlight=False, soft_wrap=True)
    return 0
