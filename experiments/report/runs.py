"""A run as a section."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.parts import Picture, Section, Table, read_json, readable, shown
from mom_jax.cli.train import command_of
from mom_jax.errors import InputError
from mom_jax.evals.harness.suites import suite_means
from mom_jax.interop.published import is_published, read_config
from mom_jax.models.accounting import Cost, account, total
from mom_jax.models.config import MoMConfig
from mom_jax.reports.markdown import describe_model
from mom_jax.reports.pictures import draw_pictures
from mom_jax.training.config import CONFIG_FILE, TrainConfig
from mom_jax.training.log import METRICS_FILE, read_metrics
from mom_jax.training.sittings import SITTINGS_FILE, read_sittings

EVALUATION_FILE, TASKS_FILE = "eval.json", "tasks.json"


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
        evaluation: held-out scores, or None.
        tasks: results of tasks, ``tasks`` and ``groups``.
    """

    folder: Path
    name: str
    model: MoMConfig
    config: TrainConfig | None
    records: list[dict[str, Any]]
    sittings: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    tasks: dict[str, dict[str, Any]]

    @property
    def training(self) -> list[dict[str, Any]]:
        """The records of training metrics."""
        return [record for record in self.records if "loss" in record]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """The records of held-out losses during training."""
        return [record for record in self.records if "held_out_loss" in record]

    @functools.cached_property
    def cost(self) -> Cost:
        """Of the whole model."""
        return total(account(self.model, 1))

    @property
    def tokens(self) -> int | None:
        """Tokens of all windows that the run has read."""
        if self.config is None or not self.training:
            return None
        return self.training[-1]["step"] * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the windows of one step."""
        return 0 if self.config is None else self.config.data.batch_size * self.config.data.sequence_length


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
        config = readable(folder / CONFIG_FILE, lambda: TrainConfig.from_file(folder / CONFIG_FILE))
        model = config.model
    run = Run(
        folder,
        name,
        model,
        config,
        readable(folder / METRICS_FILE, lambda: read_metrics(folder)),
        readable(folder / SITTINGS_FILE, lambda: read_sittings(folder)),
        read_json(folder / EVALUATION_FILE),
        read_json(folder / TASKS_FILE) or {"tasks": {}, "groups": {}},
    )
    if not run.training and run.evaluation is None and not any(run.tasks.values()):
        raise InputError("run", folder, "has no metrics yet; train it for a few steps, or run mom-jax eval on it")
    return run


def show_run(run: Run) -> Section:
    """Facts, held-out scores, results of tasks and curves of one run.

    Raises:
        InputError: a file of the run is not of the form that this version writes.
    """
    return readable(run.folder, lambda: _section(run))


def _section(run: Run) -> Section:
    section = Section(run.name, "run" if run.config else "published model", _facts(run))
    if run.evaluation:
        section.tables.extend(_evaluation_tables(run.evaluation))
    section.tables.extend(_task_tables(run.tasks))
    if run.config is None:
        section.more.append(("configuration", json.dumps(run.model.to_dict(), indent=2)))
        return section
    if run.training:
        drawn = draw_pictures(run.config, run.records)
        section.pictures.extend(Picture(f"{name.replace('_', ' ')} by step", png) for name, png in drawn.items())
    if run.held_out:
        rows = [[f"{r['step']:,}", f"{r['held_out_loss']:.4f}"] for r in run.held_out]
        section.more.append(("held-out loss in training", Table("", ["step", "loss (nats)"], rows)))
    section.more.append(("configuration", json.dumps(run.config.to_dict(), indent=2)))
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
    if not run.training:
        return [("training", "not logged")]
    last = run.training[-1]
    speed = np.median([record["tokens_per_second"] for record in run.training])
    facts = [
        ("steps", f"{last['step']:,} of {config.steps:,}" + ", not finished" * (last["step"] < config.steps)),
        ("tokens", f"{run.tokens:,} ({run.tokens_per_step:,} each step)"),
        ("last training loss", f"{last['lm_loss']:.4f} nats per token"),
    ]
    if run.held_out:
        loss, step = run.held_out[-1]["held_out_loss"], run.held_out[-1]["step"]
        facts.append(("last held-out loss in training", f"{loss:.4f} nats per token (step {step:,})"))
    facts += [("skipped steps", f"{last['bad_total']:.0f}"), ("median speed", f"{speed:,.0f} tokens/s")]
    for sitting in run.sittings:
        versions = ", ".join(f"{name} {version}" for name, version in sitting["versions"].items())
        trained = f"{sitting['date']} UTC, from step {sitting['step']:,}, on {sitting['devices']}; {versions}"
        facts.append(("trained", trained))
    return facts if run.sittings else [*facts, ("trained", "date and versions were not recorded")]


def _evaluation_tables(evaluation: dict[str, Any]) -> list[Table]:
    scores = [
        f"{evaluation['tokens']:,}",
        f"{evaluation['loss']:.4f}",
        f"{evaluation['perplexity']:.3f}",
        f"{evaluation['bits_per_byte']:.4f}",
    ]
    where = ", ".join(f"{name.replace('_', ' ')} {shown(evaluation[name])}" for name in ("step", "sequence_length")
                      if name in evaluation)  # fmt: skip
    tables = [Table(f"Held-out text ({where})", ["tokens", "loss (nats)", "perplexity", "bits per byte"], [scores])]
    rows = [
        [f"{b['start']:,}–{b['stop'] - 1:,}", f"{b['tokens']:,}", f"{b['loss']:.4f}"] for b in evaluation["by_position"]
    ]
    tables.append(Table("By position in the window", ["positions", "tokens", "loss (nats)"], rows))
    if "load" in evaluation:
        heading = ["layer", *(f"memory {m}" for m in range(len(evaluation["load"][0]))), "entropy (nats)"]
        layers = zip(evaluation["load"], evaluation["routing_entropy"], strict=True)
        rows = [[str(i), *(f"{share:.3f}" for share in load), f"{h:.3f}"] for i, (load, h) in enumerate(layers)]
        tables.append(Table("Share of the assignments of each memory", heading, rows))
    return tables


def _task_tables(tasks: dict[str, dict[str, Any]]) -> list[Table]:
    rows = []
    for name, task in tasks["tasks"].items():
        for metric, value in task["metrics"].items():
            error, better = task["stderr"].get(metric), task["higher_is_better"].get(metric)
            cells = [f"{value:.4f}", "–" if error is None else f"{error:.4f}"]
            cells += [{True: "higher", False: "lower", None: "–"}[better], f"{task['samples']:,}"]
            cells += [str(task["fewshot"]), str(task["version"]), f"{task['step']:,}", task["lm_eval"]]
            rows.append([name, metric, *cells])
    heading = ["task", "metric", "value", "standard error", "better", "documents", "shots", "version", "step"]
    tables = [Table("Tasks", [*heading, "lm-eval"], rows)] if rows else []
    means = [[name, "average", f"{value:.4f}"] for name, value in suite_means(tasks["tasks"]).items()]
    for name, group in tasks["groups"].items():
        means += [[name, metric, f"{value:.4f}"] for metric, value in group["metrics"].items()]
    return [*tables, Table("Averages and groups", ["set", "metric", "value"], means)] if means else tables
