"""A run as a section."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from mom_jax.cli.train import command_of
from mom_jax.evals.results import Evaluation, Tasks, read_evaluations, read_tasks
from mom_jax.interop.published import is_published, read_config
from mom_jax.models.accounting import Cost, account, total
from mom_jax.models.config import MoMConfig
from mom_jax.reports.pictures import draw_pictures
from mom_jax.reports.records import Records, Sitting, nothing_logged, read_records, read_sittings
from mom_jax.reports.tables import Table, detail_tables, evaluation_tables, in_words, task_tables
from mom_jax.reports.words import TWO_LOSSES, describe_model, last_held_out, sample_of
from mom_jax.training.config import CONFIG_FILE, TrainConfig

from .sections import Picture, Section


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a run, or of a published model that was evaluated, say.

    Attributes:
        folder: of the run.
        name: on the page.
        model: its configuration.
        config: of the training; None for a published model.
        records: of the training.
        sittings: when it was trained.
        evaluations: held-out scores, the ones that count first.
        tasks: results of tasks and groups.
        left_out: what of all this could not be read, a line each.
    """

    folder: Path
    name: str
    model: MoMConfig
    config: TrainConfig | None
    records: Records
    sittings: list[Sitting]
    evaluations: list[Evaluation]
    tasks: Tasks
    left_out: list[str]

    @functools.cached_property
    def cost(self) -> Cost:
        """Of the whole model."""
        return total(account(self.model, 1))

    @property
    def tokens(self) -> int | None:
        """Tokens of all windows that the run has read."""
        if self.config is None or not self.records:
            return None
        return self.records.training[-1]["step"] * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the windows of one step."""
        return 0 if self.config is None else self.config.data.tokens_per_step


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run or a published model."""
    return (folder / CONFIG_FILE).is_file()


def read_run(folder: Path, name: str) -> Run:
    """Reads all files of a run but its checkpoints.

    Raises:
        InputError: a file that cannot be understood, or nothing measured yet.
    """
    if is_published(folder):
        config, model = None, read_config(folder)[0]
    else:
        config = TrainConfig.from_file(folder / CONFIG_FILE)
        model = config.model
    left_out: list[str] = []
    run = Run(
        folder,
        name,
        model,
        config,
        read_records(folder, left_out.append),
        read_sittings(folder, left_out.append),
        read_evaluations(folder, left_out.append),
        read_tasks(folder, left_out.append),
        left_out,
    )
    if not run.records and not run.evaluations and not any(run.tasks.values()):
        raise nothing_logged(folder, left_out)
    return run


def show_run(run: Run) -> Section:
    """Facts, held-out scores, a sample, results of tasks and curves of one run."""
    section = Section(run.name, "run" if run.config else "published model", _facts(run))
    section.left_out.extend(run.left_out)
    if run.evaluations:
        section.notes.append(TWO_LOSSES)
        section.tables.extend(evaluation_tables(run.evaluations))
    for other in run.evaluations[1:]:
        for table in detail_tables(other):
            section.more.append((f"{table.title}: {in_words(other)}", dataclasses.replace(table, title="")))
    section.tables.extend(task_tables(run.tasks))
    section.texts.extend(sample_of(run.evaluations))
    section.more.append(("configuration", json.dumps((run.config or run.model).to_dict(), indent=2)))
    if run.config is None:
        return section
    if run.records:
        drawn = draw_pictures(run.config, run.records)
        section.pictures.extend(Picture(f"{name.replace('_', ' ')} by step", png) for name, png in drawn.items())
    if run.records.held_out:
        rows = [[f"{r['step']:,}", f"{r['held_out_loss']:.4f}"] for r in run.records.held_out]
        section.more.append(("held-out loss in training", Table("", ["step", "loss (nats)"], rows)))
    return dataclasses.replace(section, command=command_of(run.config)[1])


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [("folder", str(run.folder)), ("model", describe_model(run.model))]
    facts.append(("parameters", f"{run.cost.parameters:,}, of which a token uses {run.cost.activated:,}"))
    facts.append(("state of one sequence", f"{run.cost.state_bytes:,} bytes"))
    if run.config is not None:
        facts.insert(1, ("nearest preset", command_of(run.config)[0]))
        facts.append(("text", f"{run.config.data.path}, tokenizer {run.config.data.tokenizer}"))
        facts.append(("seeds", f"{run.config.seed} (parameters), {run.config.data.seed} (data)"))
        facts.extend(_training_facts(run, run.config))
    return facts


def _training_facts(run: Run, config: TrainConfig) -> list[tuple[str, str]]:
    if not run.records:
        return [("training", "not logged")]
    last = run.records.training[-1]
    speed = np.median([record["tokens_per_second"] for record in run.records.training])
    facts = [
        ("steps", f"{last['step']:,} of {config.steps:,}" + ", not finished" * (last["step"] < config.steps)),
        ("tokens", f"{run.tokens:,} ({run.tokens_per_step:,} each step)"),
        ("last training loss", f"{last['lm_loss']:.4f} nats per token"),
    ]
    if run.records.held_out:
        facts.append(("last held-out loss in training", last_held_out(config, run.records.held_out[-1])))
    facts += [("skipped steps", f"{last['bad_total']:.0f}"), ("median speed", f"{speed:,.0f} tokens/s")]
    for sitting in run.sittings:
        versions = ", ".join(f"{name} {version}" for name, version in sitting["versions"].items())
        trained = f"{sitting['date']} UTC, from step {sitting['step']:,}, on {sitting['devices']}; {versions}"
        facts.append(("trained", trained))
    return facts if run.sittings else [*facts, ("trained", "date and versions were not recorded")]
