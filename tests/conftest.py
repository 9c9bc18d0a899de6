"""What not every machine has: a test marked ``gpu``, ``tpu`` or ``parity`` is deselected where that is missing, and
named at the end; likewise ``fuzz``, ``programs`` and ``exhaustive``, which take their time, unless they are asked for.

With pytest-xdist every worker collects the same tests, so a worker hands its list to the controller when it ends.

Compilation takes most of the suite's time. So programs are compiled to cheap machine code, and kept in a folder that
the workers and the processes which tests start share; benchmarks and the demo measure the other. Tracing makes many
objects and little garbage, so the collector looks for it more rarely. Each worker keeps to its own cores, so that the
threads of two do not wait for each other. XLA still gets several threads there: Triton's interpreter runs inside a
callback, which waits for its operands to be copied by another thread, for ever where there is none (jax issue 24255).
"""

import contextlib
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
import unittest.mock
from pathlib import Path

import hypothesis
import pytest
from support import typechecked
from support.processes import compiler

HARDWARE = ("gpu", "tpu")
ON_DEMAND = ("fuzz", "programs", "exhaustive")
MARKERS = (*HARDWARE, "parity", "compilers", *ON_DEMAND)
# Files whose tests share what takes long: a worker takes over the last tests of another, and would make it again.
FIRST = ("cli/test_processes.py", "models/test_sharding.py", "training/test_sharding.py")
# Folders whose programs others compile again: other tests, and the processes which they start.
SHARED = ("cli", "training")
# Folders whose tests check annotations.
ANNOTATED = ("tests", "ops", "layers", "models")
_NOT_RUN: dict[str, list[str]] = {}
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN_CACHE = _CACHE not in os.environ

typechecked.install()  # before anything imports mom_jax
gc.set_threshold(50_000, 20, 100)
# Neither a loaded machine nor a first call that imports libraries is a finding; the default is 200 ms an example.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores)

os.environ.setdefault("NPROC", "4")  # XLA's threads
# JAX reads these when it is first imported, which is after this file; workers inherit them.
if _OWN_CACHE:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="mom-jax-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# XLA's newer emitters of fused loops take more time than the rest of compilation; support/compile.py optimises what
# runs long all the same. A worker has one core or few, and gains nothing from a program that is cut into parts.
_CHEAP = ("backend_optimization_level=0", "backend_extra_options=xla_cpu_disable_new_fusion_emitters",
          "cpu_parallel_codegen_split_count=1")  # fmt: skip
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in _CHEAP))
# Triton reads this when a kernel is defined: its interpreter then runs the kernel on the host. A test that compiles
# kernels, or runs them on a GPU, does so in a process without it.
os.environ.setdefault("TRITON_INTERPRET", "1")


def _available(marker: str, asked_for: str) -> bool:
    """Whether this machine can run the tests of a marker; JAX is asked only when there is such a test."""
    if marker in ON_DEMAND:
        return marker in asked_for
    if marker in HARDWARE:
        import jax

        return jax.default_backend() == marker
    if marker == "compilers":
        return all(map(compiler, ("libtpu", "jax_cuda12_plugin", "jax_plugins", "nvidia", "jax_triton")))
    return all(importlib.util.find_spec(package) for package in ("torch", "triton", "fla"))


@pytest.fixture(scope="session", autouse=True)
def small_groups():
    """Groups of chunks as small as they get, so that rows as short as those of tests cross from one to the next."""
    from mom_jax.ops import chunk_groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_groups, "_CACHED_FLOATS", 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def programs(request):
    """What others compile again is kept, traced by this worker and compiled for all; the rest is not: to write a
    program takes a quarter of the time to compile it."""
    import jax

    from mom_jax import trace_cache

    name = "jax_persistent_cache_min_compile_time_secs"
    before, shared = getattr(jax.config, name), request.path.parent.name in SHARED
    jax.config.update(name, before if shared else 1e9)
    with pytest.MonkeyPatch.context() as patch:
        if shared:  # as a command finds programs, but not on the disk
            patch.setattr(trace_cache, "_folder", lambda: Path())
            patch.setattr(trace_cache, "_program", lambda path, function, *_: function)
        yield
    jax.config.update(name, before)


@pytest.fixture(scope="module", autouse=True)
def annotations(request):
    """Annotations are checked where the annotated functions are tested; elsewhere models call the same ones."""
    checked = request.path.parent.name in ANNOTATED
    with contextlib.nullcontext() if checked else typechecked.unchecked():
        yield


@pytest.fixture(autouse=True)
def environment():
    """A command sets variables for its own process; a test that runs one in this process passes none on."""
    with unittest.mock.patch.dict(os.environ):
        yield


@pytest.fixture
def complaint(capsys):
    """The one line of a command that is refused, with status 2 and nothing on stdout."""
    from mom_jax.cli.main import main

    def of(*words: object) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1, out + err
        return err

    return of


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests that need what is missing; some files come first."""
    needs = {item: {name for name in MARKERS if item.get_closest_marker(name)} for item in items}
    absent = {name for name in set().union(*needs.values()) if not _available(name, config.option.markexpr)}
    missing = [item for item in items if needs[item] & absent]
    for item in missing:
        _NOT_RUN.setdefault(min(needs[item] & absent), []).append(item.nodeid)
    items[:] = [item for item in items if item not in missing]
    config.hook.pytest_deselected(items=missing)
    items.sort(key=lambda item: not item.path.as_posix().endswith(FIRST))


def pytest_collection_finish() -> None:
    """What is there before the first test stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands a worker's list to the controller; the process that made the folder of programs removes it."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()  # or the last collections search all programs of the suite, for half a minute
    gc.unfreeze()  # for those collections, by which bindings find what leaks
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["not_run"] = _NOT_RUN
    if _OWN_CACHE:
        shutil.rmtree(os.environ[_CACHE], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Takes a worker's list; all workers collect the same tests, so the last one stands for all."""
    _NOT_RUN.update(getattr(node, "workeroutput", {}).get("not_run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the tests that this machine cannot run."""
    for hardware, names in sorted(_NOT_RUN.items()):
        need = "not asked for:" if hardware in ON_DEMAND else "not run here: needs"
        terminalreporter.section(f"{need} {hardware} ({len(names)})")
        for name in names:
            terminalreporter.write_line(name)
