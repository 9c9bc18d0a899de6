"""``mom-jax bench``: which tables, what it prints; one real table in a small size."""

import io

import pytest

from mom_jax import terminal
from mom_jax.benchmarks import command
from mom_jax.cli.main import main


def test_the_tables_of_this_machine(capsys, monkeypatch):
    """All in their order, or the named ones."""
    monkeypatch.setattr("mom_jax.benchmarks.cpu.operator_table", lambda: ["| 1 |"])
    monkeypatch.setattr("mom_jax.benchmarks.rules.rule_table", lambda: ["| 2 |"])
    monkeypatch.setattr(command, "CPU", {name: command.CPU[name] for name in ("operator", "recurrences")})
    for tables, lines in (((), "| 1 | 2 |"), (("recurrences",), "| 2 |")):
        assert main(["bench", *tables]) == 0
        printed = capsys.readouterr().out
        assert "jax " in printed.splitlines()[0] and "### Recurrences" in printed
        assert " ".join(line for line in printed.splitlines() if line.startswith("|")).replace("| |", "|") == lines


def test_a_table_on_any_machine(capsys):
    """Forward and training pass of the operator, with times."""
    assert main(["bench", "operator", "--tiny"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 128 |")]
    assert [row[2] for row in rows] == ["forward", "training"] and all(float(row[3]) > 0 for row in rows)


@pytest.mark.parametrize("width", [30, 80])
def test_a_table_fits_the_terminal(width, monkeypatch):
    """No number is cut, and no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    out.isatty = lambda: True
    lines = ["| length of a row | seconds, both ways | MiB |", "|---|---|---|", "| 65,536 | 1,234.567 | 12,345.6 |"]
    lines.append("a note")
    command._show("length", lines, terminal.console(out))
    printed = out.getvalue()
    assert all(text in printed for text in ("65,536", "1,234.567", "12,345.6", "a note")) and "---" not in printed
    assert max(map(len, printed.splitlines())) <= width


def test_list_names_every_table(capsys):
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.CPU)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("lenght", "tables=lenght: unknown here; did you mean length?"),
        ("mixer,layer", "tables=layer: unknown here; did you mean"),
    ],
)
def test_an_unknown_table_is_one_line(tables, message, complaint):
    assert complaint("bench", tables).startswith("mom-jax: " + message)
