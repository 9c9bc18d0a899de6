"""``mom-jax eval RUN``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from mom_jax.cli.notes import note
from mom_jax.cli.parsing import OfRun, Place, parse
from mom_jax.errors import InputError, need
from mom_jax.fields import Count, Name, Range, check_fields
from mom_jax.importing import loading
from mom_jax.paths import local_path, output_folder, why_not_writable
from mom_jax.training.run_places import at_hand

DESCRIPTION = """Scores the newest checkpoint of a run on held-out text: loss, perplexity, bits per byte,
loss by position, load of each memory, and n-gram models of the same text beside a model of bytes. Prints tables, adds
the scores to eval.json and renews report.md in the run's folder, or in --out. A published model's folder (see mom-jax
convert) serves as a run.

With --tasks it runs tasks of lm-evaluation-harness instead, and adds their results to tasks.json. Answers are kept
beside it: the same command goes on where it was stopped.

Example: mom-jax eval runs/mom-tiny --sequence-length 1024

Example: mom-jax eval runs/mom-tiny --step 200

Example: mom-jax eval /shared/runs/mom-340m --tasks recall,commonsense,longbench --out results/mom-340m"""


@dataclasses.dataclass(frozen=True)
class EvalConfig(OfRun):
    """What to score, and on what."""

    sequence_length: Annotated[int, Range(least=1, most=2**24)] | None = None
    """Tokens per window, or of a task's longest input; default: as in training."""
    batch_size: Annotated[int, Range(least=1, most=2**20)] | None = None
    """Windows or inputs per batch; default: as in training."""
    max_windows: Count | None = None
    """Score about this many windows, evenly spread, instead of all held-out text."""
    sample: bool = True
    """Continue the beginning of a held-out document too, where there is one device."""
    tasks: Name | None = None
    """Comma-separated tasks: recall and commonsense (the paper's sets), longbench, or any task, group
    or tag of lm-evaluation-harness."""
    include_path: Place | None = None
    """Folder with more task files (YAML) for --tasks."""
    limit: Count | None = None
    """Documents of each task; default: all."""
    out: Place | None = None
    """Folder for the results; default: the run's."""

    def __post_init__(self):
        check_fields(self)
        if self.tasks is not None and not self.task_names:
            raise InputError("tasks", self.tasks or "''", "names no task; try --tasks recall")
        if self.tasks and not self.sample:
            raise InputError("no_sample", "", "cannot be used with --tasks, which writes no sample")
        for field in ("max_windows",) if self.tasks else ("include_path", "limit"):
            if getattr(self, field) is not None:
                remedy = f"{'does not go' if self.tasks else 'goes only'} with --tasks"
                raise InputError(field, getattr(self, field), remedy)

    @property
    def task_names(self) -> list[str]:
        """The names in ``tasks``."""
        return [name for name in map(str.strip, (self.tasks or "").split(",")) if name]


def main(args: Sequence[str]) -> int:
    """Parses the arguments, scores the run, prints and keeps the results."""
    arguments = parse(EvalConfig, args, prog="mom-jax eval", description=DESCRIPTION)
    if arguments.tasks is not None:
        need("lm_eval", "eval", "tasks", arguments.tasks, "lm-evaluation-harness")
    with at_hand(arguments.run, arguments.step) as run:
        return _score(dataclasses.replace(arguments, run=run))


def _score(arguments: EvalConfig) -> int:
    place = _place(arguments)
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.scores import score_and_keep, score_tasks_and_keep
        from mom_jax.training.checkpoint import Choice

    options = {name: value for name in _PASSED_ON if (value := getattr(arguments, name)) is not None}
    choice = Choice(arguments.step, arguments.ema)
    if arguments.tasks is not None:
        return score_tasks_and_keep(arguments.run, place, arguments.task_names, choice=choice, **options)
    return score_and_keep(arguments.run, place, choice=choice, sample=arguments.sample, **options)


_PASSED_ON = ("sequence_length", "batch_size", "max_windows", "include_path", "limit")


def _place(arguments: EvalConfig) -> Path | None:
    """The folder of the results; None where the run's cannot be written to, which is said before the work begins."""
    if arguments.out is not None:
        return output_folder(arguments.out)
    folder = local_path(arguments.run, "run")
    why = why_not_writable(folder) if folder.is_dir() else None
    if why:
        note(f"run={arguments.run}: cannot be written to ({why}): results are only printed; --out FOLDER keeps them")
    return None if why else folder
