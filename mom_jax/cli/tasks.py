"""What ``mom-jax eval RUN --tasks`` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mom_jax.evals.harness.suites import suite_means
from mom_jax.terminal import print_table


def print_results(found: dict[str, Any], out: Console) -> None:
    """Prints one row for each metric of each task, then averages."""
    table = Table("task", "metric", title=f"lm-evaluation-harness {found['lm_eval']}", title_justify="left")
    for name in ("value", "standard error", "better", "documents"):
        table.add_column(name, justify="right")
    for name, task in found["tasks"].items():
        for metric, value in task["metrics"].items():
            error = task["stderr"].get(metric)
            better = {True: "higher", False: "lower", None: ""}[task["higher_is_better"][metric]]
            shown = "" if error is None else f"{error:.4f}"
            table.add_row(name, metric, f"{value:.4f}", shown, better, f"{task['samples']:,}")
    table.add_section()
    for name, group in found["groups"].items():
        for metric, value in group["metrics"].items():
            table.add_row(name, f"{metric} of the group", f"{value:.4f}", "", "", "")
    for name, value in suite_means(found["tasks"]).items():
        table.add_row(name, "average", f"{value:.4f}", "", "higher", "")
    print_table(table, out)
