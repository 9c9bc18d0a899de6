"""Imports every module of ours that is installed: ``python modules.py`` in any environment."""

import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator

PACKAGES = ("mom_jax", "pallas_kernels")
# What an extra brings may be missing, and with it the modules that are made of it.
OF_EXTRAS = {
    "matplotlib": "report",
    "jinja2": "report",
    "torch": "parity",
    "transformers": "parity",
    "fla": "parity",
    "triton": "gpu",
    "jax_triton": "gpu",
    "lm_eval": "eval",
    "datasets": "eval",
}


def missing() -> Iterator[tuple[str, str]]:
    """(module of ours, package that it lacks) for each that cannot be imported.

    Raises:
        Exception: whatever ends an import for another reason.
    """
    for package in PACKAGES:
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.", onerror=lambda _: None)
        for module in found:
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                yield module.name, (error.name or "").partition(".")[0]


def main() -> int:
    """Prints what extras would add; 1 where a module lacks what no extra brings."""
    lacking = list(missing())
    lost = [f"{module}: no {package}" for module, package in lacking if package not in OF_EXTRAS]
    for line in lost:
        print(line, file=sys.stderr)
    count = sum(name.partition(".")[0] in PACKAGES for name in sys.modules)
    print(f"{count} modules import here")
    for extra, number in sorted(Counter(OF_EXTRAS[p] for _, p in lacking if p in OF_EXTRAS).items()):
        print(f"{number} need the extra {extra}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
