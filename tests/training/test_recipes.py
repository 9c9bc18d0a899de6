"""A run with everything that is not the default: Muon, rates of groups, a moving average, a penalty on logits."""

import dataclasses
import io
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from support.tokenizers import byte_level

from mom_jax.cli.main import main
from mom_jax.cli.train import parse_train
from mom_jax.data.loader import TrainLoader
from mom_jax.data.prepare import prepared
from mom_jax.errors import InputError
from mom_jax.evals.results import add_evaluation, read_evaluations
from mom_jax.runs import one_device
from mom_jax.training.checkpoint import Choice, checkpoint_folder, load_run, restore
from mom_jax.training.conversion import run_to_published
from mom_jax.training.log import read_metrics
from mom_jax.training.loop import train
from mom_jax.training.optimizers import Muon
from mom_jax.training.origin import find_origin, first_state
from mom_jax.training.program import Program

DECAY = 0.7


@pytest.fixture(scope="module")
def make_config(make_config):
    """Of a rule whose models can be published."""

    def make(*arguments, model=None, **changes):
        plain = {"memory_rule": "gated_deltanet", "feature_map": "identity", "use_short_conv": True}
        return make_config(*arguments, model=plain | (model or {}), **changes)

    return make


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    """Four steps with a checkpoint after each."""
    optimizer = Muon(learning_rate=1e-2, warmup_steps=0, rates=("router=0",), ema_decay=DECAY)
    changes = {"optimizer": optimizer, "z_loss_scale": 1e-2, "steps": 4, "checkpoint": {"every": 1}}
    config = make_config(tmp_path_factory.mktemp("run"), **changes)
    assert train(config, lambda model, batches: {"held_out_loss": 0.0}, Console(file=io.StringIO())).finished
    return config


def states(config):
    program = Program(config, one_device())
    return [restore(checkpoint_folder(config.run_dir), step, program) for step in (1, 2, 3, 4)]


def test_the_average_follows_the_parameters(trained):
    first, *later = states(trained)
    average = first.ema
    for updates, state in enumerate(later, 1):
        decay = min(DECAY, (1 + updates) / (10 + updates))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        chex.assert_trees_all_close(state.ema, average, rtol=1e-4, atol=1e-6)


def test_a_group_with_rate_0_stays_and_the_penalty_is_logged(trained):
    routers = [np.asarray(state.params["layers"]["attn"]["router"]["weight"]) for state in states(trained)]
    assert all((router == routers[0]).all() for router in routers)
    for record in read_metrics(trained.run_dir):
        if "loss" in record:
            extra = trained.model.aux_loss_scale * record["aux_loss"] + 1e-2 * record["lm_z_loss"]
            assert record["loss"] == pytest.approx(record["lm_loss"] + extra, rel=1e-5)


def test_a_checkpoint_and_the_average_are_chosen_by_name(trained, tmp_path, capsys):
    run = trained.run_dir
    assert main(["eval", run, "--no-sample", "--max-windows", "8", "--out", str(tmp_path), "--step", "2", "--ema"]) == 0
    first = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert (first["step"], first["ema"]) == (2, True)
    assert "2 (average)" in capsys.readouterr().out
    for changes in ({"ema": False}, {"step": 4}):
        add_evaluation(tmp_path, {**first, **changes}, pytest.fail)
    assert len(read_evaluations(tmp_path, pytest.fail)) == 3
    assert main(["convert", run, str(tmp_path / "published"), "--step", "2", "--ema"]) == 0
    weights = load_file(tmp_path / "published" / "model.safetensors")
    _, model, step = load_run(run, one_device(), Choice(2, ema=True))
    assert step == 2
    np.testing.assert_array_equal(weights["model.embeddings.weight"], model.embeddings[...])


def test_a_new_run_starts_with_the_weights_of_another(trained, make_config, tmp_path):
    """Of a run, which keeps its own model, schedule and text; and of what it was converted to."""
    run_to_published(trained.run_dir, tmp_path / "published", one_device(), dtype="float32", max_shard_bytes=10**9)
    for source in (trained.run_dir, str(tmp_path / "published")):
        config = make_config(tmp_path / "tuned", init_from=source, seed=5).anchored()
        loader = TrainLoader(prepared(config.data), config.data)
        origin = find_origin(config, loader)
        assert origin.step == 0 and "starting from the weights in" in origin.notes[-1]
        state = first_state(Program(config, one_device()), origin)
        chex.assert_trees_all_equal(state.params, states(trained)[-1].params)
        assert int(state.step) == 0 and state.ema is None


def test_the_command_takes_model_and_tokenizer_from_the_weights(trained):
    run = parse_train(["mom-tiny", "--init-from", trained.run_dir, "--optimizer.learning-rate", "1e-4"]).run
    assert dataclasses.replace(run.model, bos_token_id=1) == dataclasses.replace(trained.model, bos_token_id=1)
    assert run.optimizer.learning_rate == 1e-4 and run.data.tokenizer == trained.data.tokenizer
    with pytest.raises(InputError, match=r"^init_from=no-such-run: no such folder"):
        parse_train(["mom-tiny", "--init-from", "no-such-run"])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"num_memories": 8}, r"^init_from=.*another model: model\.num_memories \(4 there, 8 here\)"),
        ("data", {"tokenizer": "TOKENIZER"}, r"^data\.tokenizer=.*: is not the tokenizer of the weights"),
    ],
)
def test_weights_of_another_model_or_tokenizer_are_refused(section, changes, message, trained, make_config, tmp_path):
    if "tokenizer" in changes:
        byte_level().save(str(tmp_path / "tokenizer.json"))
        changes = {"tokenizer": str(tmp_path / "tokenizer.json")}
    config = make_config(tmp_path / "tuned", init_from=trained.run_dir, **{section: changes})
    with pytest.raises(InputError, match=message):
        find_origin(config.anchored(), None)


@pytest.mark.parametrize("verb", [["eval"], ["generate", "--prompt", "a"], ["convert"]], ids=lambda verb: verb[0])
def test_a_checkpoint_that_is_not_there(verb, trained, make_config, tmp_path, capsys):
    name, *rest = verb
    destination = [str(tmp_path / "out")] if name == "convert" else []
    assert main([name, trained.run_dir, *destination, *rest, "--step", "9"]) == 2
    assert "step=9: no checkpoint of this step in " in (said := capsys.readouterr().err)
    assert said.strip().endswith("there are 1, 2, 3, 4") and not (tmp_path / "out").exists()


def test_an_average_that_is_not_there(trained, tmp_path):
    shutil.copytree(trained.run_dir, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "4"
    shutil.rmtree(folder / "ema")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("ema/")}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputError, match=r"ema=.*4: keeps no moving average .* --optimizer\.ema-decay"):
        load_run(tmp_path / "run", one_device(), Choice(ema=True))
