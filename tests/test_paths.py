"""What a user names as a place is a local path, or refused."""

from pathlib import Path

import pytest

from mom_jax.errors import InputError
from mom_jax.paths import absolute, check_local, local_path


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
