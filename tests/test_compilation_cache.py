"""What the command line asks of JAX's compilation cache."""

import os

import pytest

from mom_jax.compilation_cache import OFF, keep_programs

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = (
    FOLDER,
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_ENABLE_COMPILATION_CACHE",
)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """The environment of a user who has set nothing but where caches are."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    monkeypatch.setattr(os, "environ", environment | {"XDG_CACHE_HOME": str(tmp_path)})
    return os.environ


def test_programs_are_kept_in_the_users_cache_folder_within_bounds(settings, tmp_path):
    assert keep_programs(["eval", "runs/a"]) == ["eval", "runs/a"]
    assert settings[FOLDER].startswith(str(tmp_path / "mom-jax" / "programs"))
    assert int(settings["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 2 * 2**30


def test_what_the_user_has_set_stays(settings):
    settings[FOLDER] = "/elsewhere"
    keep_programs(["eval"])
    assert settings[FOLDER] == "/elsewhere"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in settings


@pytest.mark.parametrize("args", [[OFF, "eval", "a"], ["eval", OFF, "a"], ["eval", "a", OFF]])
def test_it_can_be_turned_off_anywhere(settings, args):
    assert keep_programs(args) == ["eval", "a"]
    assert settings["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert FOLDER not in settings


def test_a_cache_folder_that_cannot_be_written_is_no_mistake(settings, tmp_path):
    (tmp_path / "mom-jax").write_text("", encoding="utf-8")
    assert keep_programs(["eval"]) == ["eval"]
    assert FOLDER not in settings
