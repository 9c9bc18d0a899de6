"""Traced programs that are kept: found by a second process, and by no other program than the one that was traced."""

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.damage import flip_the_middle

from mom_jax import decoding, importing, trace_cache
from mom_jax.cli.main import main
from mom_jax.models.config import MoMConfig
from mom_jax.models.structure import build_model
from mom_jax.trace_cache import kept

X = np.arange(3, dtype=np.float32)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where a command that begins now keeps programs."""
    monkeypatch.setattr(importing, "in_command", True)
    monkeypatch.setattr(importing, "foreign", set())
    monkeypatch.setattr(trace_cache, "_programs", {})
    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_enable_compilation_cache": True}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield tmp_path / "traced"
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def start(folder, monkeypatch):
    """Calls the program ``factor * x`` as a new process would; tells the result, and how often it was traced."""

    def start(x=X, factor=2.0, about="program"):
        monkeypatch.setattr(trace_cache, "_programs", {})
        traced = []

        @jax.jit
        def program(x):
            traced.append(x)
            return {"product": factor * x}

        run = kept(program, (about, factor), (x,))
        return np.asarray(run(x)["product"]), len(traced)

    return start


def test_a_second_process_does_not_trace(start):
    for traced in (1, 0, 0):
        result, times = start()
        assert times == traced
        np.testing.assert_array_equal(result, 2 * X)


@pytest.mark.parametrize(
    "change",
    [{"factor": 3.0}, {"about": "other"}, {"x": X[:2]}, {"x": X.astype(np.int32)}],
    ids=["argument", "name", "shape", "dtype"],
)
def test_another_program_is_another_entry(start, change):
    start()
    result, times = start(**change)
    assert times == 1
    np.testing.assert_array_equal(result, change.get("factor", 2.0) * change.get("x", X))


def test_programs_for_a_gpu_are_traced(start, folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert start()[1] == 1 and not folder.exists()


def test_it_depends_on_settings_code_versions_and_device(start, monkeypatch):
    start()
    with jax.default_matmul_precision("highest"):
        assert start()[1] == 1
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0")
        assert start()[1] == 1
    with monkeypatch.context() as patch:
        patch.setattr(trace_cache, "_own_code", lambda: b"edited")
        assert start()[1] == 1
    device = SimpleNamespace(platform="cpu", device_kind="other", client=jax.devices()[0].client)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: [device])
        assert start()[1] == 1
    assert start()[1] == 0


def test_every_file_of_the_code_counts(monkeypatch, tmp_path):
    def digest():
        trace_cache._own_code.cache_clear()
        return trace_cache._own_code()

    package = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(trace_cache.importlib, "import_module", lambda name: package)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a.py").write_text("a = 1\n", encoding="utf-8")
    before = digest()
    (tmp_path / "inner/a.py").write_text("a = 2\n", encoding="utf-8")
    changed = digest()
    (tmp_path / "inner/a.py").rename(tmp_path / "a.py")
    assert len({before, changed, digest()}) == 3
    trace_cache._own_code.cache_clear()


def _of_another(path):
    other = next(file for file in path.parent.iterdir() if file != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [flip_the_middle, _of_another, lambda path: os.truncate(path, 100), lambda path: os.truncate(path, 0)],
    ids=["a bit", "another entry", "half", "empty"],
)
def test_a_damaged_entry_is_traced_and_written_anew(start, folder, damage):
    start()
    (path,) = folder.iterdir()
    start(factor=5.0)
    damage(path)
    for traced in (1, 0):
        result, times = start()
        assert times == traced
        np.testing.assert_array_equal(result, 2 * X)


def test_what_is_not_the_projects_is_not_kept(folder, monkeypatch):
    class Own:
        pass

    program = jax.jit(lambda x: x)
    several = SimpleNamespace(sharding=SimpleNamespace(device_set={0, 1}))
    for about, x in ((Own, X), (Own(), X), (lambda: 1, X), ("split", several)):
        assert kept(program, about, (x,)) is program
    monkeypatch.setattr(importing, "foreign", {"my_rules"})
    assert kept(program, "program", (X,)) is program
    monkeypatch.setattr(importing, "foreign", set())
    monkeypatch.setattr(importing, "in_command", False)
    assert kept(program, "program", (X,)) is program
    assert not folder.exists()


def test_modules_of_a_users_own_are_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(importing, "foreign", set())
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "noted_rules.py").write_text("Rule = 1\n", encoding="utf-8")
    importing.imported("mom_jax.errors:InputError", "field")
    assert importing.foreign == set()
    importing.imported("noted_rules:Rule", "field")
    assert importing.foreign == {"noted_rules"}


def test_what_cannot_be_exported_is_called_as_it_is(folder):
    program = jax.jit(lambda x: jax.pure_callback(np.sin, x, x))
    assert kept(program, "callback", (X,)) is program
    np.testing.assert_array_equal(program(X), np.sin(X))


@pytest.mark.parametrize(("function", "platforms"), [(jnp.linalg.cholesky, ("cpu",)), (jnp.sum, ("",))])
def test_scipy_is_imported_for_programs_that_need_it_alone(folder, monkeypatch, function, platforms):
    matrix = 4 * np.eye(2, dtype=np.float32)
    run = kept(jax.jit(function), function.__name__, (matrix,))
    np.testing.assert_array_equal(run(matrix), function(matrix))
    (path,) = folder.iterdir()
    program, _ = trace_cache._read(path)
    assert program.platforms == ("cpu",)
    assert trace_cache._without_lapack(program).platforms == platforms


def test_other_arguments_than_announced_are_traced(folder):
    run = kept(jax.jit(lambda x: 2 * x), "double", (X,))
    np.testing.assert_array_equal(run(X), 2 * X)
    np.testing.assert_array_equal(run(X[:2]), 2 * X[:2])


def test_entries_that_were_not_used_for_longest_go(start, folder, monkeypatch):
    start()
    (first,) = folder.iterdir()
    os.utime(first, (1, 1))
    start(factor=3.0)
    start()  # uses the first again
    (second,) = set(folder.iterdir()) - {first}
    os.utime(second, (2, 2))
    monkeypatch.setattr(trace_cache, "MAX_BYTES", int(2.5 * first.stat().st_size))
    start(factor=4.0)
    assert first.exists() and not second.exists() and len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_mistake(start, folder):
    folder.write_text("", encoding="utf-8")
    result, _ = start()
    np.testing.assert_array_equal(result, 2 * X)


def test_a_program_that_calls_the_command_keeps_nothing(monkeypatch, capsys):
    monkeypatch.setattr(importing, "in_command", True)
    assert main(["--version"]) == 0
    assert not importing.in_command


def test_generation_is_the_same(folder, monkeypatch):
    config = MoMConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=8)
    model = build_model(config, 0)
    prompt, key = jnp.arange(5)[None], jax.random.key(3)

    def run():
        monkeypatch.setattr(trace_cache, "_programs", {})
        return decoding.generate(model, prompt, 6, temperature=0.7, rng=key)

    first, second = run(), run()
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(importing, "in_command", False)
    np.testing.assert_array_equal(first, run())
    np.testing.assert_array_equal(second, first)
