"""The compiled step: accumulation, skipped updates, metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.batches import POISON, make_batch

from mom_jax.models.structure import ModelParts
from mom_jax.training import step
from mom_jax.training.config import MeshConfig, SpikesConfig, TrainConfig
from mom_jax.training.program import TRACED, Program
from mom_jax.training.sharding import make_mesh, shard_batch
from mom_jax.training.step import loss_and_gradients, make_train_step


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def test_accumulation_equals_one_big_batch(make_config, mesh):
    whole = make_config(model={"aux_loss_scale": 0.0})
    batch = shard_batch(make_batch(0), mesh)
    with jax.set_mesh(mesh):
        params = Program(whole, mesh).init_state().params
        results = []
        for count in (1, 4):
            config = dataclasses.replace(whole, gradient_accumulation=count)
            program = Program(config, mesh)
            results.append(jax.jit(lambda *args, program=program: loss_and_gradients(*args, program))(params, batch))
    (one, one_gradients), (four, four_gradients) = results
    assert int(one["tokens"]) == int(four["tokens"]) == int((make_batch(0)["labels"] != -100).sum())
    np.testing.assert_allclose(one["lm_loss"], four["lm_loss"], rtol=1e-5)
    np.testing.assert_allclose(one["load"], four["load"], atol=1e-6)
    for a, b in zip(jax.tree.leaves(one_gradients), jax.tree.leaves(four_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(a).max()) + 1e-9)


@pytest.fixture(scope="module")
def stepped(make_config, mesh):
    """The state and metrics after each of: a good batch, two poisoned ones, a good one."""
    with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
        nowhere = property(lambda parts: jax.tree.map(lambda _: False, nnx.to_pure_dict(parts.abstract)))
        patch.setattr(ModelParts, "decays", nowhere)  # one parameter is infinite
        program = Program(make_config(), mesh)
        run, state = make_train_step(program), program.init_state()
        params = {**state.params, "embeddings": state.params["embeddings"].at[POISON].set(jnp.inf)}
        state = dataclasses.replace(state, params=jax.device_put(params, program.shardings.params))
        history = [(jax.device_get(state), None)]
        for seed, poisoned in ((1, False), (2, True), (3, True), (4, False)):
            state, metrics = run(state, shard_batch(make_batch(seed, poisoned=poisoned), mesh))
            history.append((jax.device_get(state), jax.device_get(metrics)))
    return history


def test_a_step_that_changes_its_state_is_refused(make_config, mesh, monkeypatch):
    """It would be compiled anew for each batch; found while it is traced."""
    monkeypatch.setattr(step.optax, "apply_updates", lambda params, updates: jax.tree.map(lambda a: a[None], params))
    program = Program(make_config(), mesh)
    with jax.set_mesh(mesh), pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(lambda *x: step.train_step(*x, program), program.abstract, make_batch(0))


def test_programs_are_known_by_all_that_they_read(make_config, mesh):
    """A field of the configuration that is read while they are traced, and not named, would find another's program."""
    read = set()

    class Noted(TrainConfig):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    parts = {"spikes": SpikesConfig(skip=True), "optimizer": {"ema_decay": 0.9}}
    parts["model"] = {"router_z_loss_scale": 1e-3, "router_noise": 0.1, "router_balance": "loss_free"}
    config = make_config(gradient_accumulation=2, z_loss_scale=1e-4, **parts)
    noted = Noted(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    read.clear()
    program = Program(noted, mesh)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(program.first_state)
        jax.eval_shape(lambda *x: step.train_step(*x, program), state, make_batch(0))
    assert read & {field.name for field in dataclasses.fields(config)} == set(TRACED)


def clean(params):
    """All parameters but the poisoned row."""
    return [np.delete(leaf, POISON, 0) if leaf.shape[0] == 264 else leaf for leaf in jax.tree.leaves(params)]


def test_non_finite_steps_change_nothing_and_are_counted(stepped):
    states, metrics = zip(*stepped, strict=True)
    assert [int(s.bad_steps) for s in states] == [0, 0, 1, 2, 0]
    assert [int(s.bad_total) for s in states] == [0, 0, 1, 2, 2]
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4]
    assert not np.isfinite(metrics[2]["grad_norm"]) and np.isfinite(metrics[4]["grad_norm"])
    for before, after in ((1, 2), (2, 3)):
        for a, b in zip(
            jax.tree.leaves(states[before].opt_state), jax.tree.leaves(states[after].opt_state), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(clean(states[before].params), clean(states[after].params), strict=True):
            np.testing.assert_array_equal(a, b)
    moved = [np.any(a != b) for a, b in zip(clean(states[3].params), clean(states[4].params), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert all(np.isfinite(leaf).all() for leaf in clean(states[4].params))


def test_the_schedule_waits_while_steps_are_skipped(stepped):
    rates = [float(metrics["learning_rate"]) for _, metrics in stepped[1:]]
    np.testing.assert_allclose(rates, [0.0, 2.5e-3, 2.5e-3, 2.5e-3], rtol=1e-5)


def test_metrics_describe_every_layer_and_memory(stepped, make_config):
    metrics, model = stepped[1][1], make_config().model
    assert metrics["load"].shape == (model.num_hidden_layers, model.num_memories)
    np.testing.assert_allclose(metrics["load"].sum(-1), 1.0, rtol=1e-5)
    assert metrics["routing_entropy"].shape == (model.num_hidden_layers,)
    assert np.all((metrics["routing_entropy"] > 0) & (metrics["routing_entropy"] <= np.log(model.num_memories) + 1e-5))
    expected = metrics["lm_loss"] + model.aux_loss_scale * metrics["aux_loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["aux_loss"] >= model.topk * 0.99
