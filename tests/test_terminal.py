"""Output never breaks: any encoding, any name, any width, a reader that leaves."""

import io
import os
import sys

import pytest
from rich.progress import Progress
from rich.table import Table

from mom_jax import terminal

NAMES = "runs/[/b] [red]:smile: 中 é \udce9"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("JPY_PARENT_PID", "MPLBACKEND", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHON_TYRO_ANSI_CODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"\u4e2d \xe9 \udce9"), ("latin-1", "\\u4e2d é \\udce9"), ("utf-8", "中 é \\udce9")],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_no_sign_is_an_error(encoding, shown, name, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding))
    terminal.prepare_streams()
    stream = getattr(sys, name)
    print(NAMES, file=stream)
    terminal.console(stream).print(NAMES)
    stream.flush()
    line = f"runs/[/b] [red]:smile: {shown}\n".encode(encoding)
    assert raw.getvalue() == 2 * line


def test_a_closed_stream_takes_everything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.prepare_streams()
    terminal.console().print("to nobody")
    print("to nobody", flush=True)
    sys.stdout.close()


def table() -> Table:
    shown = Table("a name of it [/b]", title="[red]costs")
    shown.add_column("parameters of each", justify="right")
    shown.add_column("state", justify="right")
    shown.add_row("all layers together [/b]", "512,351,424 (x1.00)", "12,345.67")
    return shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_number_is_cut_whatever_the_width(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    terminal.print_table(table(), terminal.console(out))
    lines = out.getvalue().splitlines()
    for word in ("[red]costs", "512,351,424", "(x1.00)", "12,345.67", "[/b]", "together"):
        assert any(word in line for line in lines), word
    assert max(map(len, lines)) <= width


def test_a_row_is_a_line_in_a_pipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    out = io.StringIO()
    terminal.print_table(table(), terminal.console(out))
    (row,) = (line for line in out.getvalue().splitlines() if "512" in line)
    assert "all layers together [/b]" in row and "512,351,424 (x1.00)" in row and "12,345.67" in row


@pytest.mark.parametrize(
    "environment",
    [{"JPY_PARENT_PID": "1"}, {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {"TERM": "dumb"}],
    ids=["notebook", "another notebook", "dumb"],
)
def test_nothing_is_drawn_again_where_nobody_would_see_it(environment, monkeypatch):
    assert terminal.is_live(Terminal())
    for name, value in {**environment, "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    with Progress(console=terminal.console(out), disable=not terminal.console(out).is_terminal) as bar:
        for _ in bar.track(range(3)):
            pass
    assert out.getvalue() == ""
    assert not terminal.is_live(io.StringIO())


def test_no_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    terminal.print_table(table(), terminal.console(out))
    assert "\x1b" not in out.getvalue() and "512,351,424" in out.getvalue()
    monkeypatch.setenv("PYTHON_TYRO_ANSI_CODES", "True")
    terminal.prepare_streams()
    assert os.environ["PYTHON_TYRO_ANSI_CODES"] == "False"


@pytest.mark.parametrize(("total", "each", "lines"), [(957, 1, 10), (3, 1, 3), (0, 1, 0), (6000, 25, 10), (40, 20, 2)])
def test_progress_in_a_pipe_is_few_lines(total, each, lines, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.counting("[/b] windows", total) as advance:
        for _ in range(total // each):
            advance(count=each)
    told = sys.stderr.getvalue().splitlines()
    assert len(told) == lines and "\r" not in "".join(told)
    assert not lines or told[-1] == f"[/b] windows: {total:,} of {total:,}"


def test_progress_on_a_terminal_is_a_bar_and_may_be_left_out(monkeypatch):
    for quiet in (False, True):
        monkeypatch.setattr(sys, "stderr", Terminal())
        with terminal.counting("[/b] windows", 2, quiet) as advance:
            advance()
        shown = sys.stderr.getvalue()
        assert shown == "" if quiet else "[/b] windows" in shown and "/2" in shown


def test_the_name_of_a_model_is_no_markup(monkeypatch):
    from mom_jax.interop import pretrained

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(pretrained, "_PROGRESS_BYTES", 0)
    with pretrained._progress("loading models[/b]", 8) as advance:
        advance(4)
    assert "loading models[/b]" in sys.stderr.getvalue()


def test_a_reader_that_left_is_noticed():
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        assert not terminal.reader_left(stream)
        os.close(read)
        assert terminal.reader_left(stream)
        with pytest.raises(BrokenPipeError):
            terminal.console(stream).print("x" * 100_000)
        terminal.let_go(stream)
        stream.flush()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_work_outlives_a_disk_that_is_full(caplog):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        out = terminal.console(stream, outlives_reader=True)
        out.print("scores")
        out.print("more")
    with open("/dev/full", "w", encoding="utf-8") as stream, pytest.raises(OSError, match="No space left"):
        try:
            terminal.console(stream).print("scores")
        finally:
            terminal.let_go(stream)
    assert caplog.messages == ["the output cannot be written (No space left on device); going on without it"]


@pytest.mark.parametrize("text", ["a\nb\tc", "a b c", "a  b c "])
def test_one_line(text):
    assert terminal.printable(text) == "a b c"


def test_control_characters_are_not_sent_to_the_terminal():
    assert terminal.printable("x\x1b[31m\x07 中 \udce9") == r"x\x1b[31m\x07 中 \udce9"
