"""``mom-jax eval RUN``."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mom_jax.cli.parsing import Place, parse
from mom_jax.errors import InputError, install
from mom_jax.fields import Count, Name, Range, check_fields

DESCRIPTION = """Scores the newest checkpoint of a run on held-out text: loss, perplexity, bits per byte,
loss by position, load of each memory. Prints tables, writes eval.json and renews report.md in the run's folder.
A published model's folder (see mom-jax convert) serves as a run.

With --tasks it runs tasks of lm-evaluation-harness instead, and adds their results to tasks.json. Answers are
kept in the run's folder: the same command goes on where it was stopped.

Example: mom-jax eval runs/mom-tiny --sequence-length 1024

Example: mom-jax eval runs/mom-340m --tasks recall,commonsense,longbench"""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What to score, and on what."""

    run: Annotated[Place, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or of a published model."""
    sequence_length: Annotated[int, Range(least=1, most=2**24)] | None = None
    """Tokens per window, or of a task's longest input; default: as in training."""
    batch_size: Annotated[int, Range(least=1, most=2**20)] | None = None
    """Windows or inputs per batch; default: as in training."""
    max_windows: Count | None = None
    """Score about this many windows, evenly spread, instead of all held-out text."""
    tasks: Name | None = None
    """Tasks with commas between them: recall and commonsense (the paper's sets), longbench, or any task, group
    or tag of lm-evaluation-harness."""
    include_path: Place | None = None
    """Folder of further task files (YAML) for --tasks."""
    limit: Count | None = None
    """Documents of each task; default: all."""

    def __post_init__(self):
        check_fields(self)
        if self.tasks is not None and not self.task_names:
            raise InputError("tasks", self.tasks or "''", "names no task; try --tasks recall")
        for field in ("max_windows",) if self.tasks else ("include_path", "limit"):
            if getattr(self, field) is not None:
                remedy = f"{'does not go' if self.tasks else 'goes only'} with --tasks"
                raise InputError(field, getattr(self, field), remedy)

    @property
    def task_names(self) -> list[str]:
        """The names in ``tasks``."""
        return [name for name in map(str.strip, (self.tasks or "").split(",")) if name]


def main(args: Sequence[str]) -> int:
    """Parses the arguments, scores the run, prints and writes the result."""
    wanted = parse(EvalConfig, args, prog="mom-jax eval", description=DESCRIPTION)
    if wanted.tasks is not None:
        return _run_tasks(wanted)
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.runs import console, print_evaluation
    from mom_jax.reports.markdown import write_report
    from mom_jax.runs import evaluate_run
    from mom_jax.training.log import read_metrics

    out = console()
    changes = {
        name: value for name in ("sequence_length", "batch_size") if (value := getattr(wanted, name)) is not None
    }
    evaluation, data = evaluate_run(wanted.run, max_windows=wanted.max_windows, **changes)
    for line in data.notes:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    print_evaluation(evaluation, out)
    if read_metrics(Path(wanted.run).expanduser()):  # a converted model was not trained here
        report = write_report(wanted.run, evaluation)
        out.print(f"report: {report}")
    return 0


def _run_tasks(wanted: EvalConfig) -> int:
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("tasks", wanted.tasks, f"needs lm-evaluation-harness: {install('eval')}")
    from mom_jax.cli.runs import console
    from mom_jax.cli.tasks import print_results
    from mom_jax.runs import TASKS_FILE, evaluate_run_on_tasks

    options = {name: getattr(wanted, name) for name in ("include_path", "limit", "sequence_length", "batch_size")}
    found = evaluate_run_on_tasks(wanted.run, wanted.task_names, **options)
    out = console()
    print_results(found, out)
    out.print(f"results: {Path(wanted.run).expanduser() / TASKS_FILE}")
    return 0
