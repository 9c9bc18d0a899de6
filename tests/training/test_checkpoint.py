"""Checkpoints that are damaged, half written, foreign, or do not fit on the disk."""

import contextlib
import dataclasses
import errno
import io
import json
import re
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from support.damage import flip_the_middle, full_disk

from mom_jax.errors import InputError
from mom_jax.locks import only_writer
from mom_jax.training import checkpoint, manifest, storage
from mom_jax.training.checkpoint import (
    LOCK,
    Checkpoints,
    checkpoint_folder,
    latest_step,
    load_run,
    newest,
    read_config,
    read_position,
    restore,
    restore_params,
    set_aside,
)
from mom_jax.training.config import CheckpointConfig, MeshConfig
from mom_jax.training.extensions import NONE
from mom_jax.training.loop import _Sitting, train
from mom_jax.training.origin import find_origin, first_state
from mom_jax.training.program import Program
from mom_jax.training.saver import Saver
from mom_jax.training.sharding import make_mesh

POSITION = {"next_index": 24}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def written(make_config, mesh, tmp_path_factory):
    """A run with checkpoints 1 and 2 of different states, and state 2."""
    config = make_config(tmp_path_factory.mktemp("run"))
    state = Program(config, mesh).init_state()
    with Checkpoints(config) as checkpoints:
        for step in (1, 2):
            state = dataclasses.replace(state, step=jnp.int32(step), params=jax.tree.map(lambda x: x + 1, state.params))
            checkpoints.save(step, state, POSITION)
        checkpoints.wait()
    return config, state


@pytest.fixture
def run(written, tmp_path):
    """A copy of that run that a test may damage."""
    config, _ = written
    shutil.copytree(config.run_dir, tmp_path / "run")
    return dataclasses.replace(config, run_dir=str(tmp_path / "run"))


def resume(config):
    return train(config, lambda model, batches: {"held_out_loss": 0.0}, Console(file=io.StringIO()))


def largest_file(folder):
    return max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def test_what_is_written_is_read_back(written, mesh):
    config, state = written
    folder = checkpoint_folder(config.run_dir)
    assert latest_step(folder) == 2
    assert read_config(folder, 2) == config
    found, position = restore(folder, 2, Program(config, mesh)), read_position(folder, 2)
    assert position == POSITION
    chex.assert_trees_all_equal(Program(config, mesh).abstract_params, Program(config, mesh).abstract.params)
    chex.assert_trees_all_equal(found, state, strict=True)


def test_a_run_loads_as_a_model(written, mesh, monkeypatch):
    """And no optimizer is made for it."""
    config, state = written
    monkeypatch.setattr(Program, "optimizer", None)
    found, model, step = load_run(config.run_dir, mesh)
    assert (found, step) == (config, 2)
    np.testing.assert_array_equal(model.embeddings[...], state.params["embeddings"])


def flip_a_bit(checkpoint):
    flip_the_middle(largest_file(checkpoint))


def truncate(checkpoint):
    path = largest_file(checkpoint)
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(**changes):
    def edit(checkpoint):
        path = checkpoint / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return edit


DAMAGES = {
    "a flipped bit": (flip_a_bit, r"params/.*: was altered \(its SHA-256 differs\)"),
    "a truncated file": (truncate, r"has \d+ bytes instead of \d+"),
    "a missing file": (lambda checkpoint: largest_file(checkpoint).unlink(), "is missing"),
    "a further file": (lambda checkpoint: (checkpoint / "data" / "more").touch(), "data/more: is not a file of this"),
    "no manifest": (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "manifest.json: cannot be read"),
    "a broken manifest": (lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b"{"), "is damaged"),
    "a manifest of another form": (edit_manifest(files=[]), r"\['files'\] is a list, not an object"),
    "a manifest that lists nothing": (edit_manifest(files={}), "lists no file of params"),
    "another step's manifest": (edit_manifest(step=1), "belongs to step 1 and has another name"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, message, run, caplog):
    folder = checkpoint_folder(run.run_dir)
    damage(folder / "2")
    step, (note,) = newest(folder, set_aside)
    assert step == 1
    assert re.search(message, note) and note.endswith("; it was set aside as damaged-2; going on with step 1")
    assert caplog.messages == [note]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "damaged-2"]


@pytest.mark.parametrize(("damage", "message"), list(DAMAGES.values())[:5:4], ids=list(DAMAGES)[:5:4])
def test_without_a_whole_checkpoint_nothing_is_renamed(damage, message, run, mesh):
    folder = checkpoint_folder(run.run_dir)
    for step in ("1", "2"):
        damage(folder / step)
    for call in (lambda: resume(run), lambda: load_run(run.run_dir, mesh)):
        with pytest.raises(InputError, match="and there is no other whole checkpoint; use another run_dir"):
            call()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_readers_leave_a_damaged_checkpoint_to_the_one_who_trains(run, mesh, caplog):
    folder = checkpoint_folder(run.run_dir)
    truncate(folder / "2")
    with only_writer(folder.parent, LOCK):
        assert load_run(run.run_dir, mesh)[2] == 1
    assert "it stays there; going on with step 1" in caplog.text and (folder / "2").exists()
    assert load_run(run.run_dir, mesh)[2] == 1
    assert "it was set aside as damaged-2" in caplog.text and not (folder / "2").exists()


def test_a_run_whose_parameters_are_not_finite_says_so(written, make_config, tmp_path, mesh):
    config, state = make_config(tmp_path), written[1]
    params = {**state.params, "embeddings": state.params["embeddings"].at[3, 1].set(jnp.nan)}
    with Checkpoints(config) as checkpoints:
        checkpoints.save(3, dataclasses.replace(state, params=params), POSITION)
    loader, program = types.SimpleNamespace(set_state=lambda position: None), Program(config, mesh)
    for call in (lambda: first_state(program, find_origin(config, loader)), lambda: load_run(tmp_path, mesh)):
        with pytest.raises(InputError, match="its parameter embeddings holds NaN or infinity; the run diverged"):
            call()


@pytest.mark.parametrize("name", ["a[b]", "a\\b", "a**b?{c}", "gs:", " %20\n漢"], ids=ascii)
def test_checkpoints_live_under_any_name(name, written, make_config, tmp_path, mesh):
    config = make_config(tmp_path / name)
    with Checkpoints(config) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, written[1], POSITION)
    found = restore(checkpoint_folder(config.run_dir), 2, Program(config, mesh))
    jax.tree.map(np.testing.assert_array_equal, found.params, written[1].params)
    np.testing.assert_array_equal(load_run(config.run_dir, mesh)[1].embeddings[...], written[1].params["embeddings"])


def test_what_cannot_be_read_back_is_told_at_once(written, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "plain_name", contextlib.nullcontext)
    with pytest.raises(InputError, match="cannot be read"), Checkpoints(make_config(tmp_path / "a[b]")) as checkpoints:
        checkpoints.save(1, written[1], POSITION)


def test_another_format_version_is_refused(run):
    edit_manifest(format_version=manifest.FORMAT_VERSION + 1)(checkpoint_folder(run.run_dir) / "2")
    with pytest.raises(InputError, match=r"has format version 3, this program reads 2"):
        resume(run)


def test_a_parameter_that_is_not_stored_is_named(run, mesh):
    model = dataclasses.replace(run.model, memory_rule="gla")  # it has gates of its own
    with pytest.raises(InputError, match=r"lacks a parameter of the model; .*: layers\.attn\.rule\.gk_"):
        restore_params(checkpoint_folder(run.run_dir), 2, Program(dataclasses.replace(run, model=model), mesh))


def test_half_written_checkpoints_give_way_to_the_newest_complete_one(run, mesh):
    folder = checkpoint_folder(run.run_dir)
    (folder / "7").mkdir()
    (folder / "9.orbax-checkpoint-tmp").mkdir()  # as a crash leaves it
    assert latest_step(folder) == 2
    assert newest(folder, set_aside)[0] == 2
    state = restore(folder, 2, Program(run, mesh))
    with Checkpoints(run) as checkpoints:
        checkpoints.save(7, state, POSITION)  # its place is free again
        checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "7", "damaged-7"]


def test_a_folder_without_a_run_is_an_error(tmp_path, mesh):
    with pytest.raises(InputError, match="no such folder"):
        load_run(tmp_path / "none", mesh)
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_run(tmp_path, mesh)


def test_only_the_newest_are_kept(written, make_config, tmp_path):
    config = make_config(tmp_path, checkpoint={"keep": 2})
    with Checkpoints(config) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, written[1], POSITION)
        checkpoints.wait()
    assert sorted(path.name for path in checkpoint_folder(tmp_path).iterdir()) == ["2", "3"]


FULL = {
    "during the write": ("manifest.write_manifest", full_disk),
    "before it": ("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000)),
}


@pytest.mark.parametrize(("name", "stand_in"), FULL.values(), ids=FULL)
def test_a_full_disk_is_an_oserror_and_leaves_nothing(name, stand_in, written, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(f"mom_jax.training.checkpoint.{name}", stand_in)
    with pytest.raises(OSError, match="No space left") as error, Checkpoints(make_config(tmp_path)) as checkpoints:
        checkpoints.save(1, written[1], POSITION)
        checkpoints.wait()
    assert error.value.errno == errno.ENOSPC
    assert list(checkpoint_folder(tmp_path).iterdir()) == []


def test_after_a_full_disk_the_next_checkpoint_is_written(written, make_config, tmp_path, monkeypatch):
    """Met in the background, it is told by the next save; then there is room again."""
    with Checkpoints(make_config(tmp_path)) as checkpoints:
        checkpoints._proved = True  # the first one is waited for
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.manifest, "write_manifest", full_disk)
            checkpoints.save(1, written[1], POSITION)
            saver = Saver(checkpoints, 0, written[1])
            with pytest.raises(OSError, match="No space left"):
                saver.save(2, written[1], POSITION, ends=False)
        assert saver.newest is None and checkpoints.finished() == []
        saver.save(3, written[1], POSITION, ends=False)
        checkpoints.wait()
        assert saver.newest == 3 == latest_step(checkpoint_folder(tmp_path))


@pytest.mark.parametrize(("choice", "ends"), [("stop", False), ("go_on", False), ("go_on", True)])
def test_a_full_disk_ends_the_run_or_not_as_was_chosen(choice, ends, make_config, tmp_path):
    config = make_config(tmp_path, checkpoint=CheckpointConfig(on_full_disk=choice))
    program, out = types.SimpleNamespace(config=config, own=NONE, mesh=None), Console(file=io.StringIO(), width=200)
    text = types.SimpleNamespace(loader=types.SimpleNamespace(get_state=dict))
    sitting = _Sitting(program, text, None, 0.0, tmp_path, out)
    sitting.step, sitting.state, sitting.saver = 8, None, types.SimpleNamespace(save=full_disk, newest=4)
    if choice == "go_on" and not ends:
        assert sitting._save(ends=ends) == 0
        said = "warning: no checkpoint at step 8: the disk is full; going on (the newest one is of step 4)\n"
        assert out.file.getvalue() == said
    else:
        with pytest.raises(OSError, match="No space left"):
            sitting._save(ends=ends)


def test_files_of_others_are_no_damage_where_they_are_hidden(tmp_path):
    """File managers and network file systems leave them; whatever else a checkpoint does not list is damage."""
    folder = tmp_path / "3"
    for name in ("params/d/a", "config/metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"data")
    manifest.write_manifest(folder, 3)
    for name in ("params/.DS_Store", "params/d/.nfs0001"):
        (folder / name).write_bytes(b"theirs")
    manifest.verify(folder)
    (folder / "params" / "b").touch()
    with pytest.raises(manifest.DamagedError, match="params/b: is not a file of this checkpoint"):
        manifest.verify(folder)
