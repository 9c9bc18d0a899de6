"""What a user names as a place is a local path, or refused."""

from pathlib import Path

import pytest

from mom_jax.data.destination import claim_folder
from mom_jax.errors import InputError
from mom_jax.interop.folders import check_empty
from mom_jax.paths import absolute, cache_folder, check_local, local_path, output_folder
from mom_jax.reports.markdown import write_report


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("gs://bucket/run", "gs:// addresses are not supported"),
        ("s3://b", "s3://"),
        ("https://host/a.txt", "https://"),
        ("HTTP://host", "http://"),
        ("az+blob://x", r"az\+blob://"),
        ("hf://datasets/owner/name", "must be written hf:owner/name"),
        ("file:///data/a.txt", "give the path itself: /data/a.txt"),
        (Path("gs://bucket/run"), "gs://"),
        ("", "must not be empty"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_local_path(place, remedy):
    for check in (local_path, check_local, absolute):
        with pytest.raises(InputError, match=f"^run_dir=.*{remedy}"):
            check(place, "run_dir")


@pytest.mark.parametrize("place", ["runs/a", "/runs/a", "runs/a:b", "./gs:/a", "C:/runs", "a b[1]", "ü", "C:\\runs"])
def test_what_is_one(place):
    assert local_path(place, "out") == Path(place)


def test_home_and_where_we_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert absolute("~/a", "out") == absolute("a", "out") == str(tmp_path / "a")
    assert absolute("./link/../b", "out") == str(tmp_path / "b")
    assert absolute("link/a", "out") == str(tmp_path / "link" / "a")


def test_homes_that_are_not_there(tmp_path, monkeypatch):
    """Those of other people, and of an account without one, which a container may run as."""
    monkeypatch.chdir(tmp_path)
    assert local_path("~no-such-user/a", "out") == Path("~no-such-user/a")
    assert absolute("~no-such-user/a", "out") == str(tmp_path / "~no-such-user/a")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda place: place)
    assert cache_folder().is_absolute() and cache_folder().name == "mom-jax"


@pytest.mark.parametrize(
    "line",
    [
        "generate runs/a --prompt-file ~no-such-user/a",
        "inspect runs/a --file ~no-such-user/a",
        "convert ~no-such-user/a out",
    ],
)
def test_homes_of_nobody_in_commands(line, tmp_path, monkeypatch, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert "~no-such-user/a: " in complaint(*line.split())


def test_a_run_whose_name_begins_like_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"run_dir=~no-such-user: holds no config.json"):
        write_report("~no-such-user")


@pytest.mark.parametrize("name", ["page.pdf", "scores.JSON", "deep/model.safetensors"])
def test_a_folder_is_not_given_the_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for claim in (output_folder, lambda place: check_empty(Path(place)), lambda place: claim_folder(Path(place), {})):
        with pytest.raises(InputError, match=rf"={name}: would be a folder, and ends in \{Path(name).suffix} "):
            claim(name)
    assert not list(tmp_path.iterdir())


def test_folders_may_have_dots_and_be_there_before(tmp_path):
    (tmp_path / "old.txt").mkdir()
    assert [output_folder(tmp_path / name).is_dir() for name in ("old.txt", "mom-1.5b", "run.2")] == [True] * 3
