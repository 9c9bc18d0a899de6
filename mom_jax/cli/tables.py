"""Tables of costs and of results on the terminal."""

import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import mom_jax.reports.tables
from mom_jax.models.accounting import Cost, total
from mom_jax.terminal import print_table

_COLUMNS = ("parameters", "activated", "state (MiB)", "forward (MFLOP / token)", "backward (MFLOP / token)")


def print_costs(title: str, costs: list[Cost], out: Console) -> None:
    """One row for each part, runs of equal layers together, and the total."""
    table = titled(title, "part", right=_COLUMNS)
    for _, run in itertools.groupby(costs, key=lambda cost: (_kind(cost.name), *_cells(cost))):
        parts = list(run)
        table.add_row(parts[0].name if len(parts) == 1 else _range(parts), *_cells(parts[0]))
    table.add_section()
    table.add_row("total", *_cells(total(costs)))
    print_table(table, out)


def print_totals(models: dict[str, list[Cost]], out: Console) -> None:
    """One row for each model; the first is what the others are compared with."""
    table = titled("in all", "model", right=_COLUMNS)
    first = total(next(iter(models.values())))
    for name, costs in models.items():
        cost = total(costs)
        cells = [f"{cell} ({_ratio(value, base)})" for cell, value, base in
                 zip(_cells(cost), _values(cost), _values(first), strict=True)]  # fmt: skip
        table.add_row(name, *cells)
    print_table(table, out)


def print_results(table: mom_jax.reports.tables.Table, out: Console) -> None:
    """Results as a table, with their note below."""
    shown = Table(title=table.title, title_justify="left")
    for name, numeric in zip(table.heading, table.numeric, strict=True):
        shown.add_column(name, justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*row)
    print_table(shown, out)
    if table.note:
        out.print(table.note)


def titled(title: str, first: str, left: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
    """An empty table; after the first column those of text and those of numbers."""
    table = Table(first, title=title, title_justify="left")
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _values(cost):
    return cost.parameters, cost.activated, cost.state_bytes, cost.forward, cost.backward


def _cells(cost):
    return (
        f"{cost.parameters:,}",
        f"{cost.activated:,}",
        f"{cost.state_bytes / 2**20:,.2f}",
        f"{cost.forward / 1e6:,.2f}",
        f"{cost.backward / 1e6:,.2f}",
    )


def _ratio(value, base):
    return f"x{value / base:.2f}" if base else "-"


def _kind(name):
    return name.partition("(")[2]


def _range(parts):
    """The name of a run of equal layers: "layers 0-4 (memory), each"."""
    first, last = (part.name.split()[1] for part in (parts[0], parts[-1]))
    return f"layers {first}-{last} ({_kind(parts[0].name)}, each"
