"""Results of tasks beside the paper's tables."""

from typing import NamedTuple

from mom_jax.evals.harness.suites import SUITES, suite_means
from mom_jax.reports.tables import Table

from ..paper import (
    AUXILIARY_LOSS,
    COMMONSENSE,
    EQUAL_ACTIVATED,
    HYBRID,
    LONGBENCH,
    MIXED_OR_EXPANDED,
    RECALL,
    PaperTable,
)
from .runs import Run
from .sections import Section


class Ours(NamedTuple):
    """Where a number of ours is found: the average of a suite, or a metric of a task or group."""

    name: str
    metric: str = ""  # none: the suite's average
    factor: float = 100.0  # perplexities are no shares


_AVERAGES = (Ours("recall"), Ours("commonsense"))
_ABLATIONS = (MIXED_OR_EXPANDED, AUXILIARY_LOSS, HYBRID, EQUAL_ACTIVATED)
# The tables with where our number for each of their columns is.
_TABLES: tuple[tuple[PaperTable, tuple[Ours, ...]], ...] = (
    (RECALL, (*(Ours(task, "contains") for task in SUITES["recall"]), Ours("recall"))),
    (
        COMMONSENSE,
        (
            Ours("wikitext", "word_perplexity", 1.0),
            Ours("lambada_openai", "perplexity", 1.0),
            Ours("commonsense"),
        ),
    ),
    (
        LONGBENCH,
        (
            Ours("longbench_summarization", "score"),
            Ours("longbench_fewshot", "score"),
            Ours("longbench_synthetic", "score"),
            Ours("longbench_code", "score"),
            Ours("longbench", "score"),
        ),
    ),
    *((table, _AVERAGES) for table in _ABLATIONS),
)


def beside_paper(runs: list[Run]) -> Section | None:
    """The paper's tables for which a run has a number, with the runs as their first rows; None when there is none.

    Its ablations are folded away: only a run that is made like them belongs there.
    """
    section = Section("Beside the paper")
    our_scores = {run.name: _scores(run) for run in runs}
    limited = {run.name: _documents(run) for run in runs}
    for table, places in _TABLES:
        rows = []
        for run in runs:
            values = [our_scores[run.name].get(place[:2]) for place in places]
            if any(value is not None for value in values):
                name = run.name + (f" ({limited[run.name]})" if limited[run.name] else "")
                cells = ["–" if v is None else f"{p.factor * v:.2f}" for v, p in zip(values, places, strict=True)]
                rows.append([_size(run.cost.parameters), name, *cells])
        if rows and table in _ABLATIONS:
            section.more.append((_title(table), _beside(table, rows, "")))
        elif rows:
            section.tables.append(_beside(table, rows, _title(table)))
    return section if section.tables else None


def _title(table: PaperTable) -> str:
    return f"Table {table.number} of the paper: {table.title}"


def _beside(table: PaperTable, ours: list[list[str]], title: str) -> Table:
    paper_rows = [[size, model, *(f"{value:.2f}" for value in values)] for size, model, values in table.rows]
    note = "In percent, perplexities aside. " if table is COMMONSENSE else "In percent. "
    note += "The paper's models of 1.3B parameters saw 100B tokens, the smaller ones 15B."
    if table is LONGBENCH:
        note += " Averages are over more than the columns shown: ours the harness's, theirs the paper's."
    return Table(title, ["size", "model", *table.columns], [*ours, *paper_rows], note, ours=len(ours))


def _scores(run: Run) -> dict[tuple[str, str], float]:
    """Every number of a run by (task, metric), with averages under the suite's name and no metric."""
    scores = {(suite, ""): value for suite, value in suite_means(run.tasks["tasks"]).items()}
    for kind in ("tasks", "groups"):
        for name, result in run.tasks[kind].items():
            scores.update({(name, metric): value for metric, value in result["metrics"].items() if value is not None})
    return scores


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _documents(run: Run) -> str:
    limits = {limit for task in run.tasks["tasks"].values() if (limit := task.get("limit"))}
    return f"only {' or '.join(f'{limit:,}' for limit in sorted(limits))} documents of some tasks" if limits else ""
