"""Results as tables of text, which the terminal, ``report.md`` and the HTML page show alike."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from mom_jax.evals.harness.suites import suite_means
from mom_jax.evals.results import Evaluation, Tasks, is_complete

_NUMBER = re.compile(r"[-+−]?\.?\d|[-–]?$|nan$|-?inf$")


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        title: above it.
        heading: one cell for each column.
        rows: of as many cells.
        note: below it.
        ours: how many of the first rows are ours, beside those of others.
    """

    title: str
    heading: list[str]
    rows: list[list[str]]
    note: str = ""
    ours: int = 0

    @functools.cached_property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers alone."""
        return [all(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.heading))]

    def markdown(self) -> list[str]:
        """Its lines in Markdown, title and note included, with an empty line at the end."""
        rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (self.heading, *self.rows)]
        rows.insert(1, ["---:" if numeric else "---" for numeric in self.numeric])
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return [*([f"### {self.title}", ""] if self.title else []), *lines, "", *([self.note, ""] if self.note else [])]


def evaluation_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """The scores of all evaluations in one table; of the first one also what n-gram models reach, and its details."""
    rows = [
        [
            f"{e['step']:,}{' (average)' if e.get('ema') else ''}",
            f"{e['sequence_length']:,}" if "sequence_length" in e else "–",
            scored_windows(e),
            f"{e['tokens']:,}",
            f"{e['loss']:.4f}",
            f"{e['perplexity']:.3f}",
            f"{e['bits_per_byte']:.4f}",
        ]
        for e in evaluations
    ]
    heading = ["step", "window", "scored", "tokens", "loss", "perplexity", "bits/byte"]
    note = "Window in tokens; how many windows were scored; loss in nats per token."
    first = evaluations[0]
    beside = [baseline_table(first)] if first.get("baselines") else []
    return [Table("Held-out text", heading, rows, note), *beside, *detail_tables(first)]


def scored_windows(evaluation: Evaluation) -> str:
    """How much of the held-out text was scored."""
    if "windows" not in evaluation or "windows_in_all" not in evaluation:
        return "–"  # older versions did not say
    if is_complete(evaluation):
        return "all"
    return f"{evaluation['windows']:,} of {evaluation['windows_in_all']:,}"


def in_words(evaluation: Evaluation) -> str:
    """Which evaluation it is."""
    window = f", windows of {evaluation['sequence_length']:,}" if "sequence_length" in evaluation else ""
    scored = f", {scored_windows(evaluation)} scored" if "windows" in evaluation else ""
    average = ", average of the parameters" if evaluation.get("ema") else ""
    return f"step {evaluation['step']:,}{average}{window}{scored}"


def baseline_table(evaluation: Evaluation) -> Table:
    """Bits per byte of n-gram models of the same text, and how much lower or higher those of the model are."""
    ours = evaluation["bits_per_byte"]
    rows = [
        [name, f"{bits:.4f}", f"{abs(bits - ours):.4f} bits ({abs(1 - ours / bits):.1%}) {_direction(ours, bits)}"]
        for name, bits in evaluation.get("baselines", {}).items()
    ]
    note = "N-gram models of bytes, counted on the training text and scored on the same bytes of the held-out text."
    heading = ["model", "bits/byte", "this model is"]
    return Table("Beside n-gram models", heading, [*rows, ["this model", f"{ours:.4f}", ""]], note)


def _direction(ours: float, other: float) -> str:
    return "lower" if ours < other else "higher"


def detail_tables(evaluation: Evaluation) -> list[Table]:
    """The loss by position in the window and, of a model with routers, the share of each memory."""
    rows = [
        [f"{b['start']:,}–{b['stop'] - 1:,}", f"{b['tokens']:,}", f"{b['loss']:.4f}"] for b in evaluation["by_position"]
    ]
    tables = [Table("By position in the window", ["positions", "tokens", "loss"], rows)]
    if "load" in evaluation:
        memories = (f"memory {m}" for m in range(len(evaluation["load"][0])))
        layers = zip(evaluation["load"], evaluation.get("routing_entropy", []), strict=True)
        rows = [[str(i), *(f"{share:.3f}" for share in load), f"{h:.3f}"] for i, (load, h) in enumerate(layers)]
        note = "Entropy of a token's routing in nats."
        title = "Share of the assignments of each memory"
        tables.append(Table(title, ["layer", *memories, "entropy"], rows, note))
    if "contribution" in evaluation:
        shares = evaluation["contribution"]
        rows = [[str(i), *(f"{share:.3f}" for share in layer)] for i, layer in enumerate(shares)]
        note = "Of the squared norms of what memories add to reads; a shared memory comes last."
        heading = ["layer", *(f"memory {m}" for m in range(len(shares[0])))]
        tables.append(Table("Share of each memory in what is read", heading, rows, note))
    return tables


def task_tables(tasks: Tasks) -> list[Table]:
    """The score of each metric of each task; averages of the paper's sets, and groups."""
    rows = []
    for name, task in tasks["tasks"].items():
        for metric, value in task["metrics"].items():
            better = {True: "higher", False: "lower", None: "–"}[task["higher_is_better"].get(metric)]
            cells = [name, metric, _score(value), _score(task["stderr"].get(metric)), better, f"{task['samples']:,}"]
            cells += [str(task.get("fewshot", "–")), str(task.get("version", "–")), f"{task['step']:,}"]
            rows.append([*cells, task["lm_eval"]])
    heading = ["task", "metric", "value", "standard error", "better", "documents", "shots", "version", "step"]
    tables = [Table("Tasks", [*heading, "lm-eval"], rows)] if rows else []
    means = [[name, "average", _score(value)] for name, value in suite_means(tasks["tasks"]).items()]
    for name, group in tasks["groups"].items():
        means += [[name, metric, _score(value)] for metric, value in group["metrics"].items()]
    return [*tables, Table("Averages and groups", ["set", "metric", "value"], means)] if means else tables


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
