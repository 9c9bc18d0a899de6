"""The house: a file imports only from lower floors, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = ("pallas_kernels", "mom_jax", "experiments", "tools")

# The floors, lowest first. A module belongs to the longest name here that it starts with.
# `mom_jax` is the lazy front door: it shows names up to floor 4, so only the floors above may use it.
FLOORS = {
    "pallas_kernels": 0,
    "mom_jax.drawing": 0,
    "mom_jax.errors": 0,
    "mom_jax.labels": 0,
    "mom_jax.peaks": 0,
    "mom_jax.terminal": 0,
    "mom_jax.typing": 0,
    "mom_jax.fields": 1,
    "mom_jax.files": 1,
    "mom_jax.importing": 1,
    "mom_jax.compilation_cache": 2,
    "mom_jax.locks": 2,
    "mom_jax.trace_cache": 2,
    "mom_jax.paths": 1,
    "mom_jax.ops": 1,
    "mom_jax.layers": 2,
    "mom_jax.layers.rules.published": 1,
    "mom_jax.interop.model_types": 2,
    "mom_jax.models": 3,
    "mom_jax.data": 4,
    "mom_jax.interop": 4,
    "mom_jax.decoding": 4,
    "mom_jax.inspection": 4,
    "mom_jax": 5,
    "mom_jax.training": 5,
    "mom_jax.evals": 5,
    "mom_jax.planning": 6,
    "mom_jax.reports": 6,
    "mom_jax.runs": 7,
    "mom_jax.cli": 8,
    "mom_jax.__main__": 9,
    "mom_jax.benchmarks": 9,
    "mom_jax.experiments": 9,  # the name of the next one for all others
    "experiments": 9,
    "experiments.studies": 10,
    "tools": 11,
}
# Of the repository, but in no wheel.
OUTSIDE = ("tests", "support", "goldens")
# Libraries that only one package may know.
ONLY_IN = {
    "jax_triton": "pallas_kernels.gpu",
    "torch": "mom_jax.evals.reference",
    "transformers": "mom_jax.evals.reference",
    "fla": "mom_jax.evals.reference",
    "lm_eval": "mom_jax.evals.harness",
}


def within(module: str, package: str) -> bool:
    """Whether `module` is `package` or lies inside it."""
    return module == package or module.startswith(package + ".")


def room(module: str) -> str | None:
    """The entry of `FLOORS` that `module` belongs to; None for a foreign module."""
    rooms = [name for name in FLOORS if within(module, name)]
    if not rooms:
        return None
    best = max(rooms, key=len)
    if best == "mom_jax" and module != "mom_jax":
        raise AssertionError(f"{module} has no floor: add its package to FLOORS")
    return best


def module_name(path: Path, root: Path) -> str:
    """Dotted name of the module that `path` holds."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, root: Path) -> bool:
    """Whether `name` is a module or package of the tree under `root`."""
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def from_targets(node: ast.ImportFrom, importer: str, is_package: bool, root: Path) -> list[str]:
    """Modules that one ``from ... import ...`` reaches; relative ones are resolved."""
    base = node.module or ""
    if node.level:
        keep = importer.split(".")
        keep = keep[: len(keep) - node.level + is_package]
        base = ".".join([*keep, base] if base else keep)
    if base == "mom_jax" and all(alias.name == "__version__" for alias in node.names):
        return []
    return [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}", root) else base for alias in node.names]


def imports(path: Path, root: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions and ``import_module("...")`` included."""
    importer, found = module_name(path, root), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = from_targets(node, importer, path.name == "__init__.py", root)
            found += [(node.lineno, target) for target in targets]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [(node.lineno, a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def complaint(importer: str, target: str) -> str | None:
    """Why `importer` may not import `target`; None when it may."""
    for library, home in ONLY_IN.items():
        if within(target, library) and not within(importer, home) and not within(importer, "tools"):
            return f"only {home} may import {library}"
    if target.partition(".")[0] in OUTSIDE and not within(importer, "tools"):
        return "what is shipped knows no tests"
    here, there = room(importer), room(target)
    if here is None or there is None or here == there or FLOORS[there] < FLOORS[here]:
        return None
    return f"{here} is on floor {FLOORS[here]}, {there} on floor {FLOORS[there]}"


def violations(root: Path) -> list[str]:
    """Every climb in the tree under `root`, as ``file:line imports module: why``."""
    bad = []
    for path in sorted(p for top in TOP for p in (root / top).rglob("*.py")):
        for line, target in imports(path, root):
            why = complaint(module_name(path, root), target)
            if why:
                bad.append(f"{path.relative_to(root)}:{line} imports {target}: {why}")
    return bad


def test_nobody_climbs():
    """The real tree has files on the floors, and none of them climbs."""
    assert (ROOT / "mom_jax/errors.py").is_file()
    assert violations(ROOT) == []


CLIMBS = {
    "plain import": ("mom_jax/ops/a.py", "import mom_jax.layers.norm\n"),
    "from import": ("mom_jax/layers/a.py", "from mom_jax.models.lm import MoMForCausalLM\n"),
    "from package import module": ("mom_jax/models/a.py", "from mom_jax import generate\n"),
    "relative": ("mom_jax/ops/a.py", "from ..layers import norm\n"),
    "relative from a package file": ("mom_jax/ops/__init__.py", "from ..layers import norm\n"),
    "inside a function": ("mom_jax/data/a.py", "def f():\n    import mom_jax.training.step\n"),
    "by name": ("mom_jax/data/a.py", "import importlib\nimportlib.import_module('mom_jax.training.step')\n"),
    "neighbour on the same floor": ("mom_jax/training/a.py", "from mom_jax.evals.ngram import x\n"),
    "front door from below": ("mom_jax/data/a.py", "import mom_jax\n"),
    "kernels know no config": ("pallas_kernels/gpu/a.py", "from mom_jax.models.config import MoMConfig\n"),
    "jax_triton outside its package": ("mom_jax/ops/a.py", "import jax_triton as jt\n"),
    "lm_eval outside its package": ("mom_jax/cli/a.py", "from lm_eval.api.model import LM\n"),
    "torch outside the reference": ("mom_jax/evals/a.py", "from torch.nn import functional as F\n"),
    "what studies share reaches for one": ("experiments/common/a.py", "from ..studies.mqar import TINY\n"),
    "library reaches for an experiment": ("mom_jax/cli/a.py", "import mom_jax.experiments.studies.mqar\n"),
}
LEVEL = {
    "downwards": ("mom_jax/cli/a.py", "from mom_jax.training.step import x\nimport mom_jax.errors\n"),
    "same package": ("mom_jax/data/a.py", "from mom_jax.data.config import x\nfrom . import sources\n"),
    "version": ("mom_jax/data/a.py", "from mom_jax import __version__\n"),
    "front door from above": ("experiments/a.py", "from mom_jax import MoMConfig, generate\n"),
    "torch at home": ("mom_jax/evals/reference/a.py", "import torch\nfrom fla.modules import RMSNorm\n"),
    "lm_eval at home": ("mom_jax/evals/harness/a.py", "import lm_eval\n"),
    "jax_triton at home": ("pallas_kernels/gpu/a.py", "import jax\nimport jax_triton as jt\n"),
}


def plant(root: Path, name: str, text: str) -> None:
    """A small tree with one package per floor and the file under test."""
    for package in ("ops", "layers", "models", "data", "decoding", "training", "evals", "cli"):
        (root / "mom_jax" / package).mkdir(parents=True)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name,text", CLIMBS.values(), ids=CLIMBS)
def test_a_climb_is_seen(tmp_path, name, text):
    """The checker names the file of each kind of climb."""
    plant(tmp_path, name, text)
    found = violations(tmp_path)
    assert len(found) == 1 and found[0].startswith(f"{name}:")


@pytest.mark.parametrize("name,text", LEVEL.values(), ids=LEVEL)
def test_level_ground_is_free(tmp_path, name, text):
    """The checker leaves allowed imports alone."""
    plant(tmp_path, name, text)
    assert violations(tmp_path) == []


def test_a_package_without_a_floor_is_refused(tmp_path):
    """A new package has to be given a floor."""
    plant(tmp_path, "mom_jax/attic/a.py", "import mom_jax.errors\n")
    with pytest.raises(AssertionError, match=r"mom_jax\.attic\.a has no floor"):
        violations(tmp_path)
