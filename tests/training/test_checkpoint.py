"""Checkpoints that are damaged, half written, foreign, or do not fit on the disk."""

import dataclasses
import errno
import io
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mom_jax.errors import InputError
from mom_jax.training import checkpoint, manifest
from mom_jax.training.checkpoint import (
    Checkpoints,
    checkpoint_folder,
    latest_step,
    load_run,
    read_config,
    restore,
    restore_params,
)
from mom_jax.training.config import MeshConfig
from mom_jax.training.loop import train
from mom_jax.training.sharding import make_mesh
from mom_jax.training.state import init_state

POSITION = {"next_index": 24}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def written(make_config, mesh, tmp_path_factory):
    """A run with checkpoints 1 and 2 of different states, and state 2."""
    config = make_config(tmp_path_factory.mktemp("run"))
    state = init_state(config, mesh)
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
    found, position = restore(folder, 2, config, mesh)
    assert position == POSITION
    chex.assert_trees_all_equal(found, state, strict=True)


def test_a_run_loads_as_a_model(written, mesh):
    config, state = written
    found, model, step = load_run(config.run_dir, mesh)
    assert (found, step) == (config, 2)
    np.testing.assert_array_equal(model.embeddings[...], state.params["embeddings"])


def test_a_flipped_bit_is_found(run):
    path = largest_file(checkpoint_folder(run.run_dir) / "2")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"was altered \(its SHA-256 differs\); delete .*/2 to fall back"):
        resume(run)


def test_a_truncated_file_is_found(run):
    path = largest_file(checkpoint_folder(run.run_dir) / "2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"has \d+ bytes instead of \d+"):
        resume(run)


def test_a_missing_file_is_found(run):
    largest_file(checkpoint_folder(run.run_dir) / "2").unlink()
    with pytest.raises(InputError, match="is missing; delete"):
        resume(run)


def test_a_broken_manifest_is_found(run):
    (checkpoint_folder(run.run_dir) / "2" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is unreadable"):
        resume(run)


def test_another_format_version_is_refused(run):
    path = checkpoint_folder(run.run_dir) / "2" / "manifest.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**told, "format_version": manifest.FORMAT_VERSION + 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"has format version 3, this program reads 2"):
        resume(run)


def test_a_parameter_that_is_not_stored_is_named(run, mesh):
    model = dataclasses.replace(run.model, memory_rule="gla")  # it has gates of its own
    with pytest.raises(InputError, match=r"lacks a parameter of the model; .*: layers\.attn\.rule\.gk_"):
        restore_params(checkpoint_folder(run.run_dir), 2, dataclasses.replace(run, model=model), mesh)


def test_half_written_checkpoints_give_way_to_the_newest_complete_one(run, mesh):
    folder = checkpoint_folder(run.run_dir)
    (folder / "7").mkdir()  # as a crash may leave it
    (folder / "2" / "manifest.json").unlink()
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    assert latest_step(folder) == 1
    state, _ = restore(folder, 1, run, mesh)
    with Checkpoints(run) as checkpoints:
        checkpoints.save(2, state, POSITION)  # its place is free again
        checkpoints.wait()
    assert latest_step(folder) == 2
    assert int(restore(folder, 2, run, mesh)[0].step) == 1
    assert sorted(path.name.split("-")[-2] for path in folder.glob("half-written-*")) == ["2", "7"]
    assert not list(folder.glob("*.orbax-checkpoint-tmp*"))


def test_only_half_written_checkpoints_are_an_error(make_config, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(InputError, match="half written and there is no other"):
        resume(make_config(tmp_path))


def test_a_folder_without_a_run_is_an_error(tmp_path, mesh):
    with pytest.raises(InputError, match="no such folder"):
        load_run(tmp_path / "none", mesh)
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_run(tmp_path, mesh)


def test_only_the_newest_are_kept(written, make_config, tmp_path):
    config = make_config(tmp_path, checkpoint=dataclasses.replace(written[0].checkpoint, keep=2))
    with Checkpoints(config) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, written[1], POSITION)
        checkpoints.wait()
    assert sorted(path.name for path in checkpoint_folder(tmp_path).iterdir()) == ["2", "3"]


def test_a_full_disk_during_the_write_is_an_oserror_and_leaves_no_checkpoint(
    written, make_config, tmp_path, monkeypatch
):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint.manifest, "write_manifest", full)
    config = make_config(tmp_path)
    with pytest.raises(OSError, match="No space left") as error, Checkpoints(config) as checkpoints:
        checkpoints.save(1, written[1], POSITION)
        checkpoints.wait()
    assert error.value.errno == errno.ENOSPC
    assert list(checkpoint_folder(tmp_path).iterdir()) == []


def test_a_checkpoint_that_cannot_fit_is_not_begun(written, make_config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="No space left") as error, Checkpoints(make_config(tmp_path)) as checkpoints:
        checkpoints.save(1, written[1], POSITION)
    assert error.value.errno == errno.ENOSPC
    assert list(checkpoint_folder(tmp_path).iterdir()) == []
