"""Every memory rule learns: its smallest preset, made smaller, in fifty steps on a part of the demo's text."""

import dataclasses
import email
from pathlib import Path

import jax
import numpy as np
import pytest

from mom_jax.data.loader import train_loader
from mom_jax.data.prepare import prepared
from mom_jax.models.config import MEMORY_RULES
from mom_jax.models.presets import get_preset
from mom_jax.training.config import MeshConfig
from mom_jax.training.program import Program
from mom_jax.training.sharding import make_mesh, shard_batch
from mom_jax.training.step import make_train_step

STEPS = 50
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 8, "intermediate_size": 64, "num_slots": 8}
# of rules whose defaults are for longer texts
OPTIONS = {
    "sparse_delta_memory": ("table_slots=64", "slot_writes=4", "slot_reads=4"),
    "log_linear_mamba2": ("log_linear_levels=7",),
    "log_linear_gla": ("log_linear_levels=7",),
}


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_fifty_steps(rule, make_config):
    """The loss falls below that of the bytes' frequencies, and no update is skipped."""
    config = make_config(steps=STEPS)
    data = dataclasses.replace(config.data, path=str(Path(email.__file__).parent), sequence_length=64, batch_size=8)
    preset = "mom-tiny" if rule == "gated_deltanet" else f"mom-tiny-{rule.replace('_', '-')}"
    model = dataclasses.replace(get_preset(preset), **SMALL, rule_options=OPTIONS.get(rule, ()))
    assert model.memory_rule == rule
    config = dataclasses.replace(config, data=data, model=model)
    loader, mesh = train_loader(prepared(config.data, progress=False), config.data), make_mesh(MeshConfig())
    program = Program(config, mesh)
    step, state = make_train_step(program), program.init_state()
    losses, ids = [], []
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            batch = next(loader)
            ids.append(batch["input_ids"])
            state, metrics = step(state, shard_batch(batch, mesh))
            losses.append(float(metrics["lm_loss"]))
    share = np.bincount(np.concatenate(ids).reshape(-1)) / np.concatenate(ids).size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert int(state.bad_total) == 0
    assert np.mean(losses[-5:]) < entropy < losses[0], (losses[0], losses[-5:], entropy)
