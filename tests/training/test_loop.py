"""Whole runs: exact resume, signals, limits, and every way to start one wrongly."""

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mom_jax import trace_cache
from mom_jax.data import loader
from mom_jax.errors import DivergedError, InputError
from mom_jax.locks import only_writer
from mom_jax.terminal import console
from mom_jax.training import loop, program
from mom_jax.training.checkpoint import LOCK, checkpoint_folder, latest_step, read_config, read_position, restore
from mom_jax.training.config import CheckpointConfig, MeshConfig, TrainConfig
from mom_jax.training.extensions import Callback, Extensions
from mom_jax.training.log import read_metrics
from mom_jax.training.loop import train
from mom_jax.training.program import Program
from mom_jax.training.sharding import make_mesh
from mom_jax.training.signals import StopRequest
from mom_jax.training.sittings import read_sittings


class StopAt(Callback):
    """Asks the run to stop after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, step, metrics):
        return step == self.step


def silent() -> Console:
    return Console(file=io.StringIO())


def no_evaluation(model, batches) -> dict:
    return {"held_out_loss": 0.0}


def final_state(config):
    folder = checkpoint_folder(config.run_dir)
    step = latest_step(folder)
    assert step is not None
    return restore(folder, step, Program(config, make_mesh(MeshConfig()))), read_position(folder, step)


def training_records(config):
    timing = ("seconds_per_step", "tokens_per_second", "data_wait")
    return [
        {name: value for name, value in record.items() if name not in timing}
        for record in read_metrics(config.run_dir)
        if "loss" in record
    ]


def assert_same_run(config, reference):
    (state, position), (expected, expected_position) = final_state(config), final_state(reference)
    chex.assert_trees_all_equal(state, expected, strict=True)
    assert position == expected_position
    assert training_records(config) == training_records(reference)


@pytest.fixture(scope="module")
def make_config(make_config):
    """Routers are balanced by a bias, which belongs to the state too."""

    def make(*arguments, model=None, **changes):
        return make_config(*arguments, model={"router_balance": "loss_free"} | (model or {}), **changes)

    return make


@pytest.fixture(scope="module")
def uninterrupted(make_config, tmp_path_factory):
    """Twenty steps in one sitting, with checkpoints at 5, 10, 15 and 20; its text was named relative to this folder."""
    config = make_config(tmp_path_factory.mktemp("run"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=os.path.relpath(config.data.path)))
    outcome = train(config, no_evaluation, silent())
    assert (outcome.step, outcome.finished) == (20, True)
    return config


def test_a_run_learns_and_leaves_its_files(uninterrupted):
    records = training_records(uninterrupted)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert records[-1]["lm_loss"] < 0.8 * records[0]["lm_loss"]
    for record in records:
        assert record["dead_memories"] == [sum(load < 0.0025 for load in layer) for layer in record["load"]]
    assert np.any(final_state(uninterrupted)[0].params["layers"]["attn"]["router_bias"])
    assert [r["step"] for r in read_metrics(uninterrupted.run_dir) if "held_out_loss" in r] == [10, 20]
    names = {name for name in os.listdir(uninterrupted.run_dir) if not name.startswith(".")}
    assert names == {"checkpoints", "config.json", "metrics.jsonl", "sittings.jsonl", "tensorboard"}
    assert sorted(os.listdir(checkpoint_folder(uninterrupted.run_dir))) == ["10", "15", "20", "5"]


def test_a_run_keeps_its_text_by_a_path_that_means_the_same_elsewhere(uninterrupted, corpus):
    config = TrainConfig.from_file(f"{uninterrupted.run_dir}/config.json")
    saved = read_config(checkpoint_folder(uninterrupted.run_dir), 20)
    assert config.data.path == saved.data.path == str(corpus)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_ask_to_stop(number):
    outside = signal.getsignal(number)
    if outside is signal.SIG_IGN:  # the tests run under nohup, which training respects
        signal.signal(number, signal.SIG_DFL)
    former = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is former
    signal.signal(number, outside)


def test_a_run_at_an_address_goes_on_on_another_machine_bit_for_bit(uninterrupted, make_config, tmp_path):
    """Each machine has a cache of its own; the address is all that they share."""
    first = make_config("memory://bucket/run")
    stopped = train(first, no_evaluation, silent(), Extensions(callbacks=[StopAt(7)]))
    assert (stopped.step, stopped.finished) == (7, False) and "saved in memory://bucket/run" in stopped.message
    elsewhere = dataclasses.replace(first, data=dataclasses.replace(first.data, cache_dir=str(tmp_path)))
    outcome = train(elsewhere, no_evaluation, silent())
    assert (outcome.step, outcome.finished) == (20, True) and elsewhere.folder.is_relative_to(tmp_path)
    assert_same_run(dataclasses.replace(elsewhere, run_dir=str(elsewhere.folder)), uninterrupted)
    assert [sitting["step"] for sitting in read_sittings(elsewhere.folder)] == [0, 7]
    system = fsspec.filesystem("memory")
    there = system.glob("/bucket/run/checkpoints/*/manifest.json")
    assert sorted(int(Path(path).parent.name) for path in there) == [5, 7, 10, 15, 20]


def test_a_signal_saves_and_the_next_sitting_continues_bit_for_bit(uninterrupted, make_config, tmp_path):
    config = make_config(tmp_path / "run", checkpoint={"every": 1000})

    def signal_at_ten(model, batches):
        os.kill(os.getpid(), signal.SIGTERM)
        return no_evaluation(model, batches)

    outcome = train(config, signal_at_ten, silent())
    assert (outcome.step, outcome.finished) == (10, False)
    assert "SIGTERM" in outcome.message and "run the same command again" in outcome.message
    assert latest_step(checkpoint_folder(config.run_dir)) == 10
    shown = io.StringIO()
    assert train(config, no_evaluation, Console(file=shown)).finished
    assert f"resuming {config.run_dir} at step 10\n" in shown.getvalue()
    assert [sitting["step"] for sitting in read_sittings(config.run_dir)] == [0, 10]
    assert_same_run(config, uninterrupted)


def test_a_checkpoint_written_while_training_goes_on_is_exact(uninterrupted, make_config, tmp_path):
    shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    for step in (10, 15, 20):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    config = make_config(tmp_path / "run")
    train(config, no_evaluation, silent())
    assert_same_run(config, uninterrupted)


def test_a_finished_run_is_left_alone_and_may_be_extended(uninterrupted, make_config, tmp_path):
    shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    config = make_config(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    outcome = train(config, no_evaluation, silent())
    assert outcome.finished and "already trained to step 20" in outcome.message
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train(dataclasses.replace(config, steps=21), no_evaluation, silent()).step == 21


def test_a_finished_run_says_first_what_has_changed(uninterrupted, make_config, tmp_path):
    shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    config, out = make_config(tmp_path / "run"), Console(file=io.StringIO())
    slower = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-3))
    assert "already trained" in train(slower, no_evaluation, out).message
    assert "changed since: optimizer.learning_rate" in out.file.getvalue() and "resuming" not in out.file.getvalue()
    text = tmp_path / "other.txt"
    text.write_text("another text " * 2000, encoding="utf-8")
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(text)))
    with pytest.raises(InputError, match=rf"data.path={text}: its text or tokenizer is not the one"):
        train(other, no_evaluation, silent())


def test_another_config_is_refused_and_nothing_changes(uninterrupted, make_config):
    config = make_config(uninterrupted.run_dir, seed=3, steps=30)
    before = sorted(os.listdir(uninterrupted.run_dir))
    with pytest.raises(InputError, match=r"another config: seed \(was 0, now 3\)"):
        train(config, no_evaluation, silent())
    assert sorted(os.listdir(uninterrupted.run_dir)) == before


def test_a_time_limit_saves_and_stops(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path / "run", max_minutes=60.0)
    clock = time.monotonic

    def two_hours_pass(model, batches):
        monkeypatch.setattr(loop.time, "monotonic", lambda: clock() + 7200)
        return no_evaluation(model, batches)

    outcome = train(config, two_hours_pass, silent())
    assert (outcome.step, outcome.finished) == (10, False)
    assert "max_minutes=60" in outcome.message
    assert latest_step(checkpoint_folder(config.run_dir)) == 10


def test_a_sitting_takes_a_step_however_long_its_start_took(make_config, tmp_path):
    """And the next one another: a slow machine comes to the end."""
    config = make_config(tmp_path / "run", max_minutes=0.0, steps=2)
    assert [train(config, no_evaluation, silent()).step for _ in range(2)] == [1, 2]


def test_text_without_a_token_to_learn_is_no_success(make_config, tmp_path, monkeypatch):
    """As of a tokenizer that makes nothing of the text: documents are their end tokens alone."""
    monkeypatch.setattr(loader.TokenWindows, "__getitem__", lambda self, _: loader.empty_window(64))
    with pytest.raises(InputError, match=r"data\.path=.*corpus.*: has no token that follows another"):
        train(make_config(tmp_path / "run"), no_evaluation, silent())


@pytest.fixture
def overflowing(monkeypatch):
    """A function after which every update is too large for a float, in programs that are traced for it."""

    def overflow():
        monkeypatch.setattr(trace_cache, "_folder", lambda: None)
        monkeypatch.setattr(program, "learning_rate_schedule", lambda *_: lambda count: jnp.float32(1e30))

    return overflow


def test_a_diverged_run_stops_with_a_clear_message(make_config, tmp_path, overflowing):
    config = make_config(tmp_path / "run", max_bad_steps=3, steps=200)
    overflowing()
    with pytest.raises(DivergedError, match=r"max_bad_steps=3: 3 steps in a row.*lower optimizer\.learning_rate"):
        train(config, no_evaluation, silent())
    assert training_records(config)[-1]["bad_total"] == 3
    assert latest_step(checkpoint_folder(config.run_dir)) is None


def test_bad_steps_push_no_checkpoint_out_and_another_rate_goes_on(
    uninterrupted, make_config, tmp_path, monkeypatch, overflowing
):
    shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    config = make_config(tmp_path / "run", steps=32, checkpoint=CheckpointConfig(every=2, keep=2))
    overflowing()
    with pytest.raises(DivergedError, match="max_bad_steps=1000: 12 steps in a row up to step 32"):
        train(dataclasses.replace(config, max_bad_steps=1000), no_evaluation, silent())
    monkeypatch.undo()
    assert latest_step(checkpoint_folder(config.run_dir)) == 20
    shown = io.StringIO()
    recipe = dataclasses.replace(config.optimizer, learning_rate=1e-3)
    assert train(dataclasses.replace(config, optimizer=recipe), no_evaluation, Console(file=shown)).finished
    told = "changed since: checkpoint.every 5 -> 2, checkpoint.keep 10 -> 2, optimizer.learning_rate 0.01 -> 0.001"
    assert all(change in shown.getvalue() for change in told.removeprefix("changed since: ").split(", "))
    assert any("optimizer.learning_rate 0.01 -> 0.001" in note for note in read_sittings(config.run_dir)[-1]["notes"])
    assert [int(path.name) for path in sorted(checkpoint_folder(config.run_dir).iterdir())] == [30, 32]


def test_text_may_move_but_not_change(uninterrupted, make_config, tmp_path):
    shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    config = make_config(tmp_path / "run", steps=21)
    shutil.copytree(config.data.path, tmp_path / "moved")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "moved")))
    path = next((tmp_path / "moved").iterdir())
    text = path.read_text(encoding="utf-8")
    path.write_text(text[::-1], encoding="utf-8")
    with pytest.raises(InputError, match="use the same to resume"):
        train(moved, no_evaluation, silent())
    path.write_text(text, encoding="utf-8")
    assert train(moved, no_evaluation, silent()).step == 21


def test_a_folder_has_one_writer(make_config, tmp_path):
    config = make_config(tmp_path / "run")
    with only_writer(tmp_path / "run", LOCK), pytest.raises(InputError, match=rf"is in use: process {os.getpid()} on "):
        train(config, no_evaluation, silent())
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"vocab_size": 263}, r"tokenizer=bytes: has 264 tokens but .* 263 rows .*--model\.vocab-size 264"),
        ("mesh", {"tensor": 2}, r"must multiply to the number of devices \(1\)"),
        ("data", {"path": "no-such-file.txt"}, "no-such-file.txt"),
        ("data", {"batch_size": 10000}, "batch_size"),
    ],
)
def test_bad_starts_write_nothing(section, changes, message, make_config, tmp_path):
    config = make_config(tmp_path / "run", **{section: changes})
    with pytest.raises(InputError, match=message):
        train(config, no_evaluation, silent())
    assert not (tmp_path / "run").exists()


def test_an_ignored_signal_stays_ignored():
    """As after nohup, whose runs shall outlive their terminal."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_training_outlives_the_reader_of_its_output(make_config, tmp_path, caplog):
    read, write = os.pipe()

    def leave_at_ten(model, batches):
        os.close(read)
        return no_evaluation(model, batches)

    config = make_config(tmp_path / "run", checkpoint=CheckpointConfig(every=100))
    with open(write, "w", encoding="utf-8") as stream:
        evaluate = iter([leave_at_ten, no_evaluation])
        outcome = train(config, lambda *now: next(evaluate)(*now), console(stream, outlives_reader=True))
    assert outcome.finished and latest_step(checkpoint_folder(config.run_dir)) == 20
    assert caplog.messages == ["nobody reads the output any more; going on without it"]


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal
from mom_jax.training.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked", stop.signal == signal.SIGTERM, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "asked True\n"
    assert done.returncode == 128 + signal.SIGTERM
