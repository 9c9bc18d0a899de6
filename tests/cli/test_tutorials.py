"""The tutorials' blocks, in their order and in one folder, with a smaller model and text."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from mom_jax.cli.main import main

TUTORIALS = Path(__file__).resolve().parents[2] / "docs/tutorials"
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
# What is not run here, by how a block begins, and where else it is.
ELSEWHERE = {
    "python3 -m venv": "`make package` installs archives into empty environments, `make test` the source folder",
    "# with PyTorch": "tests/interop/test_live.py loads such folders there (make test-parity)",
    "mom-jax compare": "tests/evals/compare/test_live.py (make test-parity)",
    "export XLA_FLAGS": "several devices are a process's own: tests/training/test_sharding.py",
    "mom-jax train mom-1.3b": "eight devices: tests/training/test_sharding.py",
    "mom-jax data prepare /shared": "another machine's disk: tests/data/test_prepare.py",
    "srun": "several processes: tests/cli/test_processes.py",
    "# nnx_model.py": "tests/layers/test_own_rule.py",
    "# linen_model.py": "tests/layers/test_own_rule.py",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader works: the source folder, of which some files are enough."""
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text("to be or not to be", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(kind: str, text: str, tiny_run: list[str], folder: Path) -> None:
    if kind == "python":
        path = folder / "block.py"
        path.write_text(text, encoding="utf-8")
        runpy.run_path(str(path))
        return
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "mom-jax"
        if words[1] == "train":
            words = [word for word in words if word != "stdlib"]
            words.remove("--data.path")
            words += [*tiny_run, "--steps", "2", "--eval-every", "2", "--model.memory-rule", "gated_deltanet"]
        assert main(words[1:]) == 0, line


def test_every_block_runs(folder, tiny_run, capsys):
    """In the order of the site; what is left out is left out for a reason, and every reason is needed."""
    used = set()
    for page in ("first-model", "routing", "layer", "pytorch", "pod"):
        for kind, text in BLOCK.findall((TUTORIALS / f"{page}.md").read_text(encoding="utf-8")):
            reasons = [begin for begin in ELSEWHERE if text.startswith(begin)]
            used |= set(reasons)
            if not reasons:
                run(kind, text, tiny_run, folder)
    assert used == set(ELSEWHERE)
    printed = capsys.readouterr().out
    assert "half-life [" in printed and "4 gated_deltanet" in printed
    assert (folder / "runs/first/inspect.html").is_file() and (folder / "published/look/README.md").is_file()


def test_every_page_is_read():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {"first-model", "routing", "layer", "pytorch", "pod"}
