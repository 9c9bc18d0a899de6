"""Runs at addresses: copied whole or not at all, to fsspec's memory and to a folder; no model is trained here."""

import json
from pathlib import Path

import fsspec
import pytest

from mom_jax.errors import InputError
from mom_jax.training import manifest
from mom_jax.training.remote_run import RemoteRun
from mom_jax.training.run_places import at_hand, check_run, stand_in, written_back


@pytest.fixture(params=["memory", "file"])
def address(request, tmp_path):
    """Of a run that is not there yet."""
    yield f"memory://bucket{tmp_path}/run" if request.param == "memory" else f"file://{tmp_path}/bucket/run"
    fsspec.filesystem("memory").store.clear()


def checkpoint(run: RemoteRun, step: int, content: str = "numbers") -> Path:
    """A whole one in the run's folder, and a line of its metrics."""
    folder = run.folder / "checkpoints" / str(step)
    for item in ("params", "config"):
        (folder / item).mkdir(parents=True)
        (folder / item / "d").write_text(f"{content} of {step}", encoding="utf-8")
    (folder / "_METADATA").write_text("{}", encoding="utf-8")
    manifest.write_manifest(folder, step)
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"step": {step}}}\n')
    return folder


def writer(address: str, folder: Path) -> RemoteRun:
    run = RemoteRun(address, folder)
    run.claim()
    return run


@pytest.fixture
def run(address, tmp_path):
    """A run with checkpoints 2 and 4 that were copied."""
    run = writer(address, tmp_path / "here")
    assert run.goes_on() and run.steps() == []
    for step in (2, 4):
        checkpoint(run, step)
        (run.folder / ".lock").touch()
        run.push(keep=2)
    return run


def on_another_machine(run: RemoteRun, tmp_path: Path) -> RemoteRun:
    return writer(run.address, tmp_path / "elsewhere")


def test_another_machine_has_what_was_copied(run, tmp_path):
    other = on_another_machine(run, tmp_path)
    assert not other.goes_on() and other.fetch() == [] and other.goes_on()
    names = sorted(path.relative_to(other.folder).as_posix() for path in other.folder.rglob("*") if path.is_file())
    inside = ["_METADATA", "config/d", "manifest.json", "params/d"]
    assert names == [".copied.json", *(f"checkpoints/4/{name}" for name in inside), "metrics.jsonl"]
    manifest.verify(other.folder / "checkpoints/4")
    for name in ("metrics.jsonl", "checkpoints/4/_METADATA"):
        assert (other.folder / name).read_bytes() == (run.folder / name).read_bytes()


def test_checkpoints_go_as_the_run_removes_them(run):
    checkpoint(run, 6)
    run.push(keep=2)
    assert run.steps() == [4, 6]
    (run.folder / "checkpoints/6").rename(run.folder / "checkpoints/damaged-6")  # as where it goes back behind a spike
    run.push(keep=2)
    assert run.steps() == [2, 4] and run.goes_on()


def test_a_checkpoint_that_is_written_anew_is_copied_anew(run, tmp_path):
    for path in sorted((run.folder / "checkpoints/4").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run.folder / "checkpoints/4").rmdir()
    checkpoint(run, 4, "other numbers")
    run.push(keep=2)
    other = on_another_machine(run, tmp_path)
    other.fetch()
    assert (other.folder / "checkpoints/4/params/d").read_text(encoding="utf-8") == "other numbers of 4"


def test_half_a_copy_counts_for_nothing(run, tmp_path, monkeypatch):
    """A machine that is lost while it copies leaves what was whole; the next sitting clears up."""
    put = type(run._system).put

    def lost(self, local, remote):
        put(self, local[:1], remote[:1])
        raise ConnectionError("the network is down")

    checkpoint(run, 6)
    run.push_files()
    monkeypatch.setattr(type(run._system), "put", lost)
    with pytest.raises(ConnectionError):
        run.push(keep=3)
    monkeypatch.undo()
    assert run._system.find(run._at("checkpoints/6"))
    other = on_another_machine(run, tmp_path)
    other.fetch()
    assert other.steps() == [2, 4] and other.goes_on()
    checkpoint(other, 5)
    other.push(keep=3)
    assert other.steps() == [2, 4, 5] and not run._system.exists(run._at("checkpoints/6"))


def test_what_was_not_copied_yet_is_gone_on_from_and_the_rest_is_not(run, tmp_path):
    """The folder is the run, unless another machine has gone on meanwhile, or what it holds is damaged."""
    checkpoint(run, 6)
    again = writer(run.address, run.folder)
    assert again.goes_on()
    other = on_another_machine(run, tmp_path)
    other.fetch()
    checkpoint(other, 8)
    other.push(keep=3)
    again = writer(run.address, run.folder)
    assert not again.goes_on()
    again.fetch()
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["2", "4", "8"]
    (run.folder / "checkpoints/8/params/d").write_text("x", encoding="utf-8")
    assert not again.goes_on() and again.fetch() == []
    manifest.verify(run.folder / "checkpoints/8")


def test_of_two_that_write_the_older_one_ends(run, tmp_path):
    other = on_another_machine(run, tmp_path)
    checkpoint(run, 6)
    message = r"run_dir=.*: another command writes there since this one began \(process \d+ on .*\); .* is in .*/here$"
    with pytest.raises(InputError, match=message):
        run.push(keep=2)
    assert other.steps() == [2, 4]


@pytest.mark.parametrize("damage", ["params/d", "manifest.json"])
def test_damaged_there(damage, run, tmp_path):
    """The newest whole one is used, and the user told; where none is whole, that is one line."""
    run._system.pipe_file(run._at(f"checkpoints/4/{damage}"), b"{")
    other = on_another_machine(run, tmp_path)
    (note,) = other.fetch()
    assert f"{run.address}: checkpoint 4 is damaged there" in note and note.endswith("; going on with step 2")
    assert [path.name for path in (other.folder / "checkpoints").iterdir()] == ["2"]
    run._system.pipe_file(run._at("checkpoints/2/params/d"), b"{")
    with pytest.raises(InputError, match=r"run_dir=.*: every checkpoint is damaged: .*checkpoint 4"):
        RemoteRun(run.address, tmp_path / "third").fetch()


def test_readers_write_beside_it(run, tmp_path, monkeypatch):
    """A copy for reading is brought up to date, of the step that is asked for, and results go back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with at_hand(run.address, 2) as folder:
        assert folder.endswith("/run") and [x.name for x in Path(folder, "checkpoints").iterdir()] == ["2"]
        Path(folder, "eval.json").write_text("[1]", encoding="utf-8")
    with at_hand(run.address) as again:
        assert again == folder and Path(again, "checkpoints/4").is_dir()
    assert run._system.cat_file(run._at("eval.json")) == b"[1]"
    (run.folder / "report.md").write_text("before", encoding="utf-8")
    with written_back(run.address, run.folder):
        (run.folder / "later.md").write_text("after", encoding="utf-8")
    assert run._system.exists(run._at("later.md")) and not run._system.exists(run._at("report.md"))
    with pytest.raises(InputError, match=r"run=.*none: nothing is there"), at_hand(f"{run.address}/none"):
        pass
    with at_hand(str(tmp_path)) as local:
        assert local == str(tmp_path)


def test_what_cannot_be_written_is_found_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for address, message in (
        (f"file://{tmp_path}/file/run", r"cannot be written to \(NotADirectoryError|FileExistsError"),
        ("https://host.invalid/run", "cannot be written to"),
        ("memory://", "names no folder"),
        ("nonsense://bucket/run", "nonsense:// is no file system"),
    ):
        with pytest.raises(InputError, match=rf"^run_dir={address}: .*({message})"):
            writer(address, tmp_path / "here")
    for place in ("gs:/bucket", "", "memory://a\0b"):
        with pytest.raises(InputError, match=r"^run_dir="):
            check_run(place, "run_dir")


NAMES = {"large": "large", "a b?/": "a_b_", "..": "run", "x" * 300: "x" * 100}


@pytest.mark.parametrize(("end", "name"), NAMES.items())
def test_the_folder_that_stands_for_an_address(end, name, tmp_path):
    folder = stand_in(f"gs://bucket/{end}", str(tmp_path))
    assert folder.name == name and folder.is_relative_to(tmp_path)
    assert folder != stand_in(f"s3://bucket/{end}", str(tmp_path))


def test_who_writes_is_told(run):
    assert json.loads(run._system.cat_file(run._at(".writer.json")))["pid"] > 0
