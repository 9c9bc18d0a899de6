"""Results on the terminal."""

import rich.table
from rich.console import Console

from mom_jax.reports.tables import Table
from mom_jax.terminal import print_table


def print_results(table: Table, out: Console) -> None:
    """Results as a table, with their note below."""
    shown = rich.table.Table(title=table.title, title_justify="left")
    for name, numeric in zip(table.heading, table.numeric, strict=True):
        shown.add_column(name, justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*row)
    print_table(shown, out)
    if table.note:
        out.print(table.note)
