"""What not every machine has: a test marked ``gpu``, ``tpu`` or ``parity`` is deselected where that is missing, and
named at the end.

With pytest-xdist every worker collects the same tests, so a worker hands its list to the controller when it ends.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HARDWARE = ("gpu", "tpu")
MARKERS = (*HARDWARE, "parity")
_NOT_RUN: dict[str, list[str]] = {}


def _available(marker: str) -> bool:
    """Whether this machine can run the tests of a marker; JAX is asked only when there is such a test."""
    if marker in HARDWARE:
        import jax

        return jax.default_backend() == marker
    return all(importlib.util.find_spec(package) for package in ("torch", "triton", "fla"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests that need what is missing."""
    needs = {item: {name for name in MARKERS if item.get_closest_marker(name)} for item in items}
    absent = {name for name in set().union(*needs.values()) if not _available(name)}
    missing = [item for item in items if needs[item] & absent]
    for item in missing:
        _NOT_RUN.setdefault(min(needs[item] & absent), []).append(item.nodeid)
    items[:] = [item for item in items if item not in missing]
    config.hook.pytest_deselected(items=missing)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands a worker's list to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["not_run"] = _NOT_RUN


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Takes a worker's list; all workers collect the same tests, so the last one stands for all."""
    _NOT_RUN.update(getattr(node, "workeroutput", {}).get("not_run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the tests that this machine cannot run."""
    for hardware, names in sorted(_NOT_RUN.items()):
        terminalreporter.section(f"not run here: needs {hardware} ({len(names)})")
        for name in names:
            terminalreporter.write_line(name)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps compiled programs for the session, so that tests and the processes they start compile each one once.

    Yields the folder; a child process uses it with ``JAX_COMPILATION_CACHE_DIR`` in its environment.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    former = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", former)
    cache.reset_cache()
