"""The run on hardware, tried on a CPU: programs travel through a folder, are checked and timed, and faults are told."""

import ast
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mom_jax.benchmarks.kernel_passes import OPERATORS
from tools.hardware import operators
from tools.hardware.folder import ARRAYS, read_folder
from tools.hardware.make import make
from tools.hardware.programs import FULL, TINY
from tools.hardware.runner import Runner
from tools.hardware.table import page

HOUSE = Path(__file__).resolve().parents[2]
CHECK, FORWARD = "delta_rule 16 float32 check", "delta_rule 16 float32 forward"


@pytest.fixture(scope="module", name="made")
def folder(tmp_path_factory):
    """A few programs for this CPU."""
    path = tmp_path_factory.mktemp("hardware")
    make(path, TINY, (CHECK, FORWARD))
    return path


@pytest.fixture(name="copied")
def copy(made, tmp_path):
    """The folder, to be damaged."""
    return shutil.copytree(made, tmp_path / "copy")


def run(path, minutes=5.0, only=()):
    """Results as written, and the page."""
    out = path / "results.json"
    results = Runner(read_folder(path), out, minutes, only or ("delta_rule",)).run()
    assert out.read_text(encoding="utf-8") == json.dumps(results, indent=1)
    return results, page(results)


@pytest.mark.exhaustive
def test_right_and_timed(made):
    """Values and gradients are those of single tokens, the same bits come twice, and times are there."""
    results, text = run(made)
    checked, timed = results["checks"][CHECK], results["operators"][FORWARD]
    assert checked["right"] and checked["same"] and checked["errors"].keys() >= {"o", "final", "dq", "dbeta", "dstate"}
    assert 0 < max(checked["errors"].values()) <= checked["tolerance"]
    assert timed["right"] and timed["seconds"] > 0 and timed["tokens/s"] > 0
    assert "checks: 1 of 1 right" in text and f"{FORWARD}: " in text and "FAULT" not in text


@pytest.mark.parametrize("damage", [lambda x: 1.001 * x, lambda x: np.full_like(x, np.nan)], ids=["off", "NaN"])
def test_wrong_results_are_told(copied, damage):
    """A result off by a thousandth is a fault, and NaN is one too."""
    arrays = dict(np.load(copied / ARRAYS))
    arrays[f"{CHECK}/dq"] = damage(arrays[f"{CHECK}/dq"])
    np.savez(copied / ARRAYS, **arrays)
    results, text = run(copied, only=("check",))
    assert results["checks"][CHECK]["right"] is False and f"FAULT {CHECK}: dq" in text


def test_one_failure_leaves_the_rest(copied):
    """A program that cannot be read is recorded, and the others run."""
    (copied / read_folder(copied).entries[CHECK].file).write_bytes(b"no program")
    results, text = run(copied)
    assert "failed" in results["checks"][CHECK] and f"FAULT {CHECK}: LZMAError" in text
    assert results["operators"][FORWARD]["right"]


def test_time_over(made):
    """Without time nothing runs, and results say so."""
    results, _ = run(made, minutes=0)
    assert results.keys() == {"about"}


def test_every_operator_is_in_it():
    """Each operator with GPU kernels, at each size and dtype: checked, and timed both ways."""
    cases = list(operators.cases(FULL))
    assert {(case.operator, case.size, case.dtype) for case in cases} == {
        (name, size, dtype) for name in OPERATORS["gpu"] for size in (64, 128, 256) for dtype in ("float32", "bfloat16")
    }
    tiny = [case._replace(sizes=dataclasses.replace(TINY, operators=(16, 32))) for case in operators.cases(TINY)]
    for case in tiny:
        names = {program.name for part in (operators.checks, operators.timed) for program in part(case)}
        assert names >= {f"{case.name} {way}" for way in ("check", "forward", "training")}


def imported(module, seen):
    """The packages outside of tools.hardware that a module and what it imports from there need."""
    if module in seen:
        return set()
    seen.add(module)
    tree = ast.parse((HOUSE / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inside = node.module == "tools.hardware"
            names += [f"{node.module}.{a.name}" for a in node.names] if inside else [node.module]
    own = [name for name in names if name.startswith("tools.hardware.")]
    return {n.partition(".")[0] for n in names if n not in own}.union(*(imported(name, seen) for name in own))


def test_the_runner_needs_only_jax():
    """Nothing of the project is imported where the programs run, and no package but JAX and NumPy."""
    packages = imported("tools.hardware.runner", seen := set()) | imported("tools.hardware.table", seen)
    assert packages - set(sys.stdlib_module_names) == {"jax", "numpy"} and "tools.hardware.rivals" in seen
