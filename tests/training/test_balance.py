"""Routers that are balanced by a bias: the loss, the beginning. Steps: `test_sharding.py`; sittings: `test_loop.py`."""

import dataclasses
import io
import os
import signal
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from support.batches import make_batch

from mom_jax.training.checkpoint import Checkpoints
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.loop import train
from mom_jax.training.program import Program
from mom_jax.training.sharding import make_mesh, shard_batch
from mom_jax.training.step import loss_and_gradients

RATE = 0.02


def with_balance(config: TrainConfig, balance: str) -> TrainConfig:
    """The run with two layers and another way to balance."""
    rate = {"router_bias_rate": RATE} if balance == "loss_free" else {}
    model = dataclasses.replace(config.model, num_hidden_layers=2, router_balance=balance, **rate)
    optimizer = dataclasses.replace(config.optimizer, weight_decay=1.0)
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def bias_of(params):
    """The bias [L, M] in a tree of parameters."""
    return np.asarray(params["layers"]["attn"]["router_bias"])


@pytest.mark.parametrize("balance", ["none", "loss_free"])
def test_what_the_loss_counts(balance, make_config):
    """Not the auxiliary loss; parameters start as with it, and a bias, which is one more, has no gradient."""
    mesh = make_mesh(MeshConfig())
    config = with_balance(make_config(), balance)
    program = Program(config, mesh)
    params = program.init_state().params
    plain = Program(with_balance(make_config(), "auxiliary"), mesh).init_state().params
    if balance == "loss_free":
        params["layers"]["attn"]["router_bias"] += jnp.array([0.3, 0.0, 0.0, -0.3])
    run = jax.jit(partial(loss_and_gradients, program=program))
    with jax.set_mesh(mesh):
        metrics, gradients = run(params, shard_batch(make_batch(0), mesh))
    assert config.model.aux_loss_scale > 0 and float(metrics["loss"]) == float(metrics["lm_loss"])
    attn = params["layers"]["attn"]
    assert ("router_bias" in attn) == (balance == "loss_free")
    if balance == "loss_free":
        assert not bias_of(gradients).any()
        assert np.all(np.asarray(metrics["load"])[:, 0] > 0.4)
        attn.pop("router_bias")
    chex.assert_trees_all_equal(params, plain)


def test_scores_and_the_loss_on_logits_reach_the_router(make_config):
    """Sigmoids that are not renormalised, with a z-loss and a bias: counted in the loss, and logged."""
    options = {"router_scores": "sigmoid", "router_renormalise": False, "router_z_loss_scale": 0.5}
    config = with_balance(make_config(model=options), "loss_free")
    mesh = make_mesh(MeshConfig())
    program = Program(config, mesh)
    params = program.init_state().params
    with jax.set_mesh(mesh):
        run = jax.jit(partial(loss_and_gradients, program=program))
        metrics, gradients = run(params, shard_batch(make_batch(0), mesh))
    # Logits are all but 0 at first, so a sigmoid is a half and its loss log(2)^2.
    np.testing.assert_allclose(metrics["z_loss"], np.log(2) ** 2, rtol=0.1)
    np.testing.assert_allclose(metrics["loss"], metrics["lm_loss"] + 0.5 * metrics["z_loss"], rtol=1e-6)
    assert np.abs(gradients["layers"]["attn"]["router"]["weight"]).max(axis=(1, 2)).min() > 0


def test_what_is_for_training_alone(make_config):
    """Memories that choose get the same load; noise is another for another key, and none after its last step."""
    config = with_balance(make_config(), "expert_choice")
    options = {"num_hidden_layers": 1, "router_noise": 1.0, "router_noise_steps": 10}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
    mesh = make_mesh(MeshConfig())
    program = Program(config, mesh)
    params, batch = program.init_state().params, shard_batch(make_batch(0), mesh)
    run = jax.jit(lambda key, step: loss_and_gradients(params, batch, program, jax.random.key(key), step)[0])
    with jax.set_mesh(mesh):
        first, same, other, late, later = (
            jax.device_get(run(key, jnp.int32(step))) for key, step in [(1, 0), (1, 0), (2, 0), (1, 10), (2, 99)]
        )
    np.testing.assert_array_equal(first["load"], np.full((1, 4), 0.25))
    assert first["loss"] == same["loss"] and first["loss"] != other["loss"] != late["loss"]
    chex.assert_trees_all_equal(late, later)
    assert first["contribution"].shape == (1, 5)
    np.testing.assert_allclose(first["contribution"].sum(-1), 1, rtol=1e-5)


def test_weights_without_a_bias_may_start_a_run_with_one(make_config, tmp_path):
    """As a converted checkpoint brings them: the bias starts at 0 and the rest as it was stored."""
    source = dataclasses.replace(with_balance(make_config(tmp_path / "run"), "auxiliary"), steps=10, eval_every=1)
    params = jax.tree.map(lambda p: p + 0.125, Program(source, make_mesh(MeshConfig())).init_state().params)
    with Checkpoints(source) as checkpoints:
        checkpoints.save_weights(params)
    seen = []

    def look_and_stop(model, batches):
        seen.append(jax.device_get(nnx.to_pure_dict(nnx.state(model))))
        os.kill(os.getpid(), signal.SIGTERM)
        return {"held_out_loss": 0.0}

    train(with_balance(source, "loss_free"), look_and_stop, Console(file=io.StringIO()))
    (found,) = seen  # after the first step, whose learning rate is 0
    assert set(np.abs(bias_of(found)).flat) <= {np.float32(0), np.float32(RATE)}
    found["layers"]["attn"].pop("router_bias")
    chex.assert_trees_all_equal(found, params)
