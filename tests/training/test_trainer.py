"""A run with parts of one's own, in two sittings that share one program."""

import dataclasses
import io
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from mom_jax.data.loader import TrainLoader
from mom_jax.data.prepare import prepared
from mom_jax.labels import IGNORE
from mom_jax.ops.loss import token_cross_entropy
from mom_jax.runs import train
from mom_jax.training.checkpoint import checkpoint_folder, latest_step, read_position
from mom_jax.training.config import ProfileConfig, SpikesConfig
from mom_jax.training.extensions import Callback, OwnBatches
from mom_jax.training.log import read_metrics
from mom_jax.training.origin import find_origin
from mom_jax.training.profile import Profile
from mom_jax.training.sittings import read_sittings

MARK = 263  # a label that no text has; its batch has a large loss


class Heard(Callback):
    """Writes down what it is told, and asks to stop after a step."""

    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def on_step(self, step, metrics):
        assert isinstance(metrics["loss"], jax.Array)
        self.told.append(("step", step))
        return step == self.stop_at

    def on_evaluate(self, step, scores):
        self.told.append(("evaluate", step, round(scores["held_out_loss"], 3)))

    def on_checkpoint(self, step, folder):
        assert (folder / "manifest.json").is_file()
        self.told.append(("checkpoint", step))


class Kept:
    """A logger."""

    def __init__(self):
        self.lines, self.closed = [], 0

    def log(self, step, metrics, group):
        self.lines.append((step, group, metrics))

    def close(self):
        self.closed += 1


def label_loss(model, batch):
    """Nats of labels alone, summed by hand."""
    out = model(batch["input_ids"], segment_ids=batch["segment_ids"])
    nats = token_cross_entropy(out.logits, batch["labels"]).sum() / (batch["labels"] != IGNORE).sum()
    spiking = (batch["labels"] == MARK).any()
    return jnp.where(spiking, 50.0, 1.0) * nats, {"largest": jnp.abs(out.logits).max()}


def marked(batch, number):
    """The fifth batch spikes, in every micro-batch."""
    return {**batch, "labels": np.full_like(batch["labels"], MARK)} if number == 5 else batch


@dataclasses.dataclass
class Trained:
    config: object
    heard: list
    logger: Kept
    drawn: list
    outcomes: list
    said: str


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    spikes = SpikesConfig(rewind=1, window=2, factor=1000.0)
    often = {"log_every": 2, "eval_every": 3, "checkpoint": {"every": 2}}
    config = make_config(tmp_path_factory.mktemp("run"), steps=6, gradient_accumulation=2, spikes=spikes, **often)
    text = prepared(config.data)
    drawn, outcomes, heard, logger, console = [], [], [], Kept(), Console(file=io.StringIO(), width=200)
    for stop_at in (3, None):
        loader = TrainLoader(text, config.data)
        batches = (drawn.append(batch) or marked(batch, i) for i, batch in enumerate(itertools.islice(loader, 100), 1))
        heard.append(Heard(stop_at))
        outcomes.append(
            train(
                config,
                callbacks=[heard[-1]],
                logger=logger,
                optimizer=lambda schedule: optax.sgd(lambda count: 2 * schedule(count)),
                loss=label_loss,
                batches=batches,
                held_out=lambda: itertools.islice(TrainLoader(text, config.data), 1),
                console=console,
            )
        )
    return Trained(config, heard, logger, drawn, outcomes, console.file.getvalue())


def test_callbacks_are_told_in_order_and_may_stop_the_run(trained):
    first, second = trained.heard
    assert [told[:2] for told in first.told if told[0] != "checkpoint"] == [
        ("step", 1), ("step", 2), ("step", 3), ("evaluate", 3)
    ]  # fmt: skip
    assert "stopped at step 3 by a callback; saved in" in trained.outcomes[0].message
    assert [told[1] for told in second.told if told[0] == "step"] == [4, 5, 6, 5, 6]
    assert trained.outcomes[1].finished
    written = {told[1] for told in first.told + second.told if told[0] == "checkpoint"}
    assert written == {2, 3, 4, 6}


def test_own_batches_are_used_and_those_before_are_dropped_on_resuming(trained):
    rows = [batch["input_ids"] for batch in trained.drawn]
    assert len(rows) == 3 + 8
    np.testing.assert_array_equal(rows[:3], rows[3:6])
    assert read_position(checkpoint_folder(trained.config.run_dir), 6) == {"drawn": 8, "own": None}


def test_a_spike_is_gone_back_behind_and_its_text_left_out(trained, tmp_path):
    run = checkpoint_folder(trained.config.run_dir).parent
    told = "step 5 spiked: back to step 4, and on with the text behind step 6"
    assert told in trained.said and read_sittings(run)[-1]["notes"] == [told] and read_sittings(run)[-1]["step"] == 4
    records = [record for record in read_metrics(run) if "loss" in record]
    assert [record["step"] for record in records] == [2, 3, 4, 6]
    assert records[-1]["spikes"] == records[-1]["bad_total"] == 0, "as if it had not been"
    assert max(record["loss"] for record in records) < 10
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # killed before the next checkpoint
    counted = OwnBatches(iter(itertools.count()))
    assert find_origin(dataclasses.replace(trained.config, run_dir=str(tmp_path / "run")), counted).step == 4
    assert next(counted) == 6, "behind the spike, not behind step 4"


def test_the_logger_gets_what_the_file_gets(trained):
    assert trained.logger.closed == 2
    records = read_metrics(trained.config.run_dir)
    kept = {(record["step"], "train" if "loss" in record else "held_out") for record in records}
    assert kept == {line[:2] for line in trained.logger.lines}
    assert [step for step, group, _ in trained.logger.lines if group == "train"] == [2, 3, 4, 6, 6]
    for _, group, metrics in trained.logger.lines:
        if group == "train":
            assert metrics["largest"] > 0 and 0 <= metrics["data_wait"] < 60 and np.isnan(metrics["learning_rate"])
            assert metrics["loss"] == metrics["lm_loss"]
    spiked = next(metrics for step, group, metrics in trained.logger.lines if step == 6 and group == "train")
    assert spiked["loss"] > 100 and spiked["spikes"] == spiked["bad_total"] == 1


def test_a_trace_of_the_steps_that_were_named(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: told.append((folder, options)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("end"))
    profile = Profile(ProfileConfig(start=3, steps=2), tmp_path)
    ends = []
    for step in range(1, 7):
        profile.before(step, {})
        ends.append(profile.after(step, {}))
    assert ends == [False, False, False, True, False, False]
    assert told == [(str(tmp_path / "profile"), {"create_perfetto_trace": True}), "end"]
    profile.before(3, {})
    profile.close()
    profile.close()
    assert told[3:] == ["end"], "a run that stops inside a trace ends it once"


def test_the_run_learns_and_is_left_whole(trained):
    losses = [record["loss"] for record in read_metrics(trained.config.run_dir) if "loss" in record]
    assert losses[-1] < losses[0]
    assert latest_step(checkpoint_folder(trained.config.run_dir)) == 6
    assert json.loads((checkpoint_folder(trained.config.run_dir).parent / "config.json").read_text(encoding="utf-8"))
