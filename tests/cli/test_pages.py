"""What the README and the guides show is pasted here, page by page and in one folder, with a smaller model and text.

Each line of a shell block and each program is run, or stands in `ELSEWHERE` with where it is run or why it is not.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mom_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# In the order of the site; the other pages follow.
FIRST = ("first-model", "routing", "layer", "pytorch", "pod")
# Beginnings of lines and programs that are not run here.
ELSEWHERE = {
    # what is larger than a test
    "make ": ".github/workflows/check.yml runs them, those for hardware where that is",
    "python3 -m venv": "`make package` installs archives into empty environments, `make test` the source folder",
    ". .venv": "as the line before",
    "pip install": "as the line before",
    "mom-jax bench": "tests/benchmarks/test_command.py; minutes of a quiet machine",
    "mom-jax experiment": "tests/experiments; minutes to days",
    "python -m tools.make_results": "writes into the repository",
    "python tools/measure_parity.py": "an hour, with PyTorch",
    "python tools/demonstrate_reference_defects.py": "ten minutes, with PyTorch",
    "python -m tools.hardware": "tests/tools/test_hardware.py",
    "python3 -m tools.hardware": "the same",
    # what needs packages, networks, machines
    "# with PyTorch": "tests/interop/test_live.py loads such folders there (make test-parity)",
    "mom-jax compare": "tests/evals/compare/test_live.py (make test-parity)",
    "mom-jax eval runs/mom-340m --tasks": "tests/evals/harness; data sets are on the hub",
    "mom-jax push runs/mine me/mom-tiny-python --license": "tests/cli/test_hub.py, a server on this machine",
    "mom-jax pull": "tests/cli/test_hub.py",
    "mom-jax generate runs/tiny": "of what was pulled: tests/cli/test_hub.py",
    "export XLA_FLAGS": "several devices are a process's own: tests/training/test_sharding.py",
    "export JAX_COMPILATION": "sets what tests/conftest.py sets for the suite",
    "mom-jax train mom-tiny --data.path stdlib --data.batch-size 4 --steps 20": "on those devices",
    "mom-jax train mom-tiny --mesh.fsdp 2": "several processes: tests/cli/test_processes.py",
    "srun": "several processes: tests/cli/test_processes.py, tests/test_launch.py",
    "mom-jax train mom-1.3b": "eight devices: tests/training/test_sharding.py, tests/cli/test_dry_run.py",
    "mom-jax plan mom-1.3b --topology": "tests/planning/test_plan.py; minutes of compilation",
    "mom-jax plan mom-340m --topology": "tests/planning/test_plan.py",
    "mom-jax plan mom-340m --global-batch": "tests/planning/test_plan.py",
    "mom-jax train mom-tiny --run-dir gs://": "no bucket: tests/training/test_remote_run.py",
    "mom-jax eval gs://": "no bucket: tests/training/test_remote_run.py",
    "mom-jax data prepare /shared": "another machine's disk: tests/data/test_prepare.py",
    "mom-jax eval /shared": "another machine's disk: tests/cli/test_verbs.py",
    # what has programs of its own, compiled once in the suite
    "mom-jax train mom-tiny --data.mixture": "tests/data/test_mixture.py",
    "mom-jax train mom-tiny --optimizer": "tests/training/test_optimizer.py",
    "mom-jax train mom-tiny --init-from": "tests/training/test_recipes.py",
    "mom-jax train mom-tiny --spikes": "tests/training/test_trainer.py",
    "mom-jax train mom-tiny --model.memory-rule my_rules": "tests/layers/test_own_rule.py",
    "mom-jax plan mom-tiny --model.memory-rule my_rules": "tests/layers/test_own_rule.py",
    "# my_rules.py": "tests/layers/test_own_rule.py",
    "# oja.py": "tests/layers/test_own_rule.py",
    "# nnx_model.py": "tests/layers/test_own_rule.py",
    "# linen_model.py": "tests/layers/test_own_rule.py",
    "from mom_jax.training.config import TrainConfig": "tests/training/test_examples.py",
    "from mom_jax.runs import train": "tests/training/test_examples.py",
    "class Printer": "tests/training/test_examples.py",
    "import optax": "tests/training/test_examples.py",
    "from mom_jax.ops.loss": "tests/training/test_examples.py",
    "import numpy as np": "tests/training/test_examples.py",
    "mom-jax completion": "tests/test_packaging.py",
    "mom-jax convert --from": "tests/cli/test_convert.py",
    "mom-jax eval runs/mom-tiny --sequence-length": "tests/cli/test_verbs.py",
    "mom-jax generate runs/mine --prompt-file": "tests/cli/test_generate.py",
    "mom-jax generate runs/mine --prompts": "tests/cli/test_generate.py",
    "printf 'Once' | mom-jax generate": "tests/cli/test_generate.py",
    "mom-jax report runs/mom-340m runs/": "tests/experiments/test_report.py",
    "mom-jax report runs/experiments": "tests/experiments/test_report.py",
}
# Names of runs and models that pages take for given: made by the README's block.
GIVEN = {"runs/mom-tiny": "runs/mine", "runs/mom-340m": "runs/mine", "MoM-Gated-Deltanet-340M": "published/mine"}
# What a reader is told to expect.
PROMISED = (
    "(2, 24, 264)", "(2, 32)", "half-life [", "4 gated_deltanet", "0 shards written, 2 kept", "1 shards written, 1 kept"
)  # fmt: skip


def pages() -> Iterator[Path]:
    first = [ROOT / "README.md", *(ROOT / f"docs/tutorials/{name}.md" for name in FIRST)]
    others = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    yield from dict.fromkeys((*first, *others))


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) of every line of shell and every program of a page."""
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield from ((kind, line) for line in text.replace("\\\n", " ").splitlines()) if kind == "sh" else [(kind, text)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader works: the source folder, of which some files are enough, with texts."""
    for name in ("README.md", "pyproject.toml", "story.txt", "notes.txt"):
        (tmp_path / name).write_text("to be or not to be", encoding="utf-8")
    (tmp_path / "runs").mkdir()
    for name, place in GIVEN.items():
        (tmp_path / name).symlink_to(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paste(kind: str, text: str, tiny: list[str], names: dict) -> None:
    if kind == "python":
        exec(text, names)
    elif text.startswith("mom-jax "):
        assert main(smaller(text, tiny)) == 0, text
    else:
        subprocess.run(["bash", "-c", text], check=True, timeout=60)


def smaller(line: str, tiny: list[str]) -> list[str]:
    """The words of a command, whose reader, where there is one, is this test; models and texts are tiny."""
    words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)[1:]
    corpus = tiny[tiny.index("--data.path") + 1]
    words = [corpus if word == "stdlib" else word for word in words]
    if words[0] == "train":
        place = tiny.index("--data.path")  # the page's own text, or what stands for it
        words += [*tiny[:place], *tiny[place + 2 :], "--steps", "2", "--eval-every", "2"]
        words += ["--model.memory-rule", "gated_deltanet"]
    if words[0] == "inspect" and "--max-tokens" not in words:
        words += ["--max-tokens", "8"]  # texts of one length have one program
    return words


@pytest.mark.exhaustive
def test_every_line_runs_or_is_run_elsewhere(folder, tiny_run, capsys):
    """In the order of the site; every reason is needed."""
    used = set()
    for page in pages():
        names: dict = {}  # programs of a page go on from each other
        for kind, text in steps(page):
            reasons = [begin for begin in ELSEWHERE if text.startswith(begin)]
            used |= set(reasons)
            if not reasons:
                paste(kind, text, tiny_run, names)
    assert used == set(ELSEWHERE)
    printed = capsys.readouterr().out
    assert [promise for promise in PROMISED if promise not in printed] == []
    made = ("runs/first/inspect.html", "runs/first/kept.png", "published/look/README.md")
    assert all((folder / name).is_file() for name in made)


def test_where_else_is_there():
    """Every file that a reason names."""
    named = re.findall(r"[\w./-]+/[\w./-]+", " ".join(ELSEWHERE.values()))
    assert named and [name for name in named if not (ROOT / name).exists()] == []


INLINE = re.compile(r"`((?:make|pytest|python3?|tools/[\w./-]+)(?: [^`]*)?)`")


@pytest.mark.parametrize("page", [*pages()], ids=lambda page: page.stem)
def test_commands_inside_of_sentences(page):
    """Targets of make, files of tests and names of theirs, modules and scripts are there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in INLINE.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(command)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, command
            words = shlex.split(next((word[5:] for word in words if word.startswith("ARGS=")), ""))
        files = [ROOT / word for word in words if word.startswith(("tests/", "tools/", "mom_jax/"))]
        if words[1:2] == ["-m"] and words[2:3] != ["pytest"]:
            files.append(ROOT / words[2].replace(".", "/"))
        assert all(file.exists() or file.with_suffix(".py").exists() for file in files), command
        if "-k" in words and files:
            texts = [path for file in files for path in ([file] if file.is_file() else file.rglob("*.py"))]
            wanted = re.sub(r"\b(or|and|not)\b", " ", words[words.index("-k") + 1]).split()
            tested = "".join(re.findall(r"def (test_\w+)", "".join(t.read_text(encoding="utf-8") for t in texts)))
            assert [word for word in wanted if word not in tested] == [], command
