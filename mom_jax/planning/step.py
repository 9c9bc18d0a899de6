"""The training step of a run, traced and lowered for a mesh without anything that could run it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding

from mom_jax.training.config import TrainConfig
from mom_jax.training.program import Program
from mom_jax.training.sharding import BATCH_SPEC
from mom_jax.training.step import make_train_step


def sized(config: TrainConfig, batch: int, length: int) -> TrainConfig:
    """The run with batches of ``batch`` rows of ``length`` tokens."""
    data = dataclasses.replace(config.data, batch_size=batch, sequence_length=length)
    return dataclasses.replace(config, data=data)


def traced_step(program: Program) -> Any:
    """The very step that training runs, traced; ``lower().compile()`` follows. The program's mesh may be abstract."""
    mesh, data = program.mesh, program.config.data
    rows = jax.ShapeDtypeStruct(
        (data.batch_size, data.sequence_length), jnp.int32, sharding=NamedSharding(mesh, BATCH_SPEC)
    )
    step, state = make_train_step(program), program.abstract  # before the mesh is set, on which nothing can run
    with jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh):
        return step.trace(state, dict.fromkeys(("input_ids", "labels", "segment_ids"), rows))
