"""``mom-jax demo``: the whole path in a few minutes, from text to report."""

import dataclasses
from collections.abc import Sequence

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.data.config import DataConfig
from mom_jax.importing import loading
from mom_jax.training.config import TrainConfig, get_train_preset

DESCRIPTION = """Trains mom-tiny on the Python standard library's source, for at most two and a half minutes on any
machine, or resumes; scores it on held-out files beside unigram, bigram and trigram models of the same text; continues a
prompt; writes the report. Options are those of mom-jax train mom-tiny; --max-minutes 30 gives a slow machine longer.

Example: mom-jax demo --run-dir runs/demo"""

PROMPT = "def __init__(self, "


@dataclasses.dataclass(frozen=True)
class DemoData(DataConfig):
    """The data of a model of bytes, which n-gram models of bytes are compared with."""

    tokenizer: tyro.conf.Suppress[str] = "bytes"


@dataclasses.dataclass(frozen=True)
class DemoConfig(TrainConfig):
    """The run of the demonstration."""

    data: DemoData = dataclasses.field(default_factory=DemoData)


def main(args: Sequence[str]) -> int:
    """Parses the arguments and runs the demonstration."""
    config = parse(DemoConfig, args, prog="mom-jax demo", description=DESCRIPTION, default=_run())
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.runs import console
        from mom_jax.cli.scores import score_and_keep
        from mom_jax.data.prepare import prepared
        from mom_jax.paths import local_path
        from mom_jax.runs import train_and_report

    out, limit = console(), config.max_minutes
    time = "" if limit is None else f" or {limit:g} minutes, whichever comes first"
    out.print(
        f"This trains a small mixture of memories for {config.steps} steps{time}. Then it scores the model beside "
        "n-gram models, has it continue a prompt and writes a report: about a minute on two cores."
    )
    prepared(config.data)  # its time is not the training's
    outcome = train_and_report(config, out)
    in_time = outcome.finished or (limit is not None and outcome.seconds >= 60 * limit)
    if not in_time:  # told to stop
        return 0
    return score_and_keep(config.run_dir, local_path(config.run_dir, "run_dir"), prompt=PROMPT, about=False)


def _run() -> DemoConfig:
    """Small batches: what a slow machine reaches in its time is decided by the number of steps."""
    run = get_train_preset("mom-tiny")
    changes = {
        "data": DemoData(sequence_length=run.data.sequence_length, batch_size=4, held_out_fraction=0.02),
        "run_dir": "runs/demo",
        "steps": 800,
        "max_minutes": 2.5,
        "log_every": 20,
    }
    return DemoConfig(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)} | changes)
