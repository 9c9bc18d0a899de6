"""Text files are UTF-8 wherever the locale says otherwise: every call that opens one names its encoding."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = ("mom_jax", "pallas_kernels", "experiments", "tools", "docs", "tests")
# What opens files: position of the mode among the arguments, and the mode without one.
OPENERS = {
    "open": (1, "r"),
    "io.open": (1, "r"),
    "os.fdopen": (1, "r"),
    "gzip.open": (1, "rb"),
    "bz2.open": (1, "rb"),
    "lzma.open": (1, "rb"),
    "tempfile.NamedTemporaryFile": (0, "w+b"),
    "tempfile.TemporaryFile": (0, "w+b"),
}
METHOD = (0, "r")  # path.open


def mode(call: ast.Call, position: int, default: str) -> str:
    """The mode that a call opens a file in; b where that argument is no mode, as for methods of other things."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[position : position + 1]
    if not given:
        return default
    return str(given[0].value) if isinstance(given[0], ast.Constant) and set(given[0].value) <= set("rwaxbt+") else "b"


def needs_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the locale has."""
    function = ast.unparse(call.func)
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if function.endswith((".read_text", ".write_text")):
        return len(call.args) <= function.endswith(".write_text")
    if function not in OPENERS and not (function.endswith(".open") and function != "os.open"):
        return False
    return "b" not in mode(call, *OPENERS.get(function, METHOD))


def of_the_locale(text: str) -> list[int]:
    """Lines of the calls in a module that name no encoding."""
    return [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and needs_encoding(node)]


def test_every_text_file_has_its_encoding():
    files = [file for top in TOP for file in (ROOT / top).rglob("*.py")]
    assert len(files) > 150
    found = {file: of_the_locale(file.read_text(encoding="utf-8")) for file in files}
    assert [f"{file.relative_to(ROOT)}:{line}" for file, lines in found.items() for line in lines] == []


@pytest.mark.parametrize(
    "call",
    [
        "path.read_text()",
        "(folder / 'a').write_text(text)",
        "open(name)",
        "open(name, 'a')",
        "path.open()",
        "path.open('w')",
        "os.fdopen(number, 'w')",
        "gzip.open(name, 'rt')",
        "tempfile.NamedTemporaryFile('w')",
        "io.open(name, mode='r')",
    ],
)
def test_a_call_without_is_seen(call):
    assert of_the_locale(call) == [1]


@pytest.mark.parametrize(
    "call",
    [
        "path.read_text(encoding='utf-8')",
        "path.write_text(text, 'utf-8')",
        "open(name, 'rb')",
        "path.open('wb')",
        "gzip.open(name)",
        "os.open(name, os.O_RDONLY)",
        "tempfile.TemporaryFile()",
        "safe_open(name)",
    ],
)
def test_other_calls_are_left_alone(call):
    assert of_the_locale(call) == []
