"""Compiles a whole training step for accelerators that are not there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from mom_jax.training.config import get_train_preset
from mom_jax.training.program import Program
from mom_jax.training.sharding import AXES, BATCH_SPEC
from mom_jax.training.step import make_train_step


def traced(preset: str, mesh: Any, batch: int, length: int) -> Any:
    """The step of a preset on a mesh with axes data, fsdp and tensor, traced; ``lower().compile()`` follows."""
    config = get_train_preset(preset)
    data = dataclasses.replace(config.data, batch_size=batch, sequence_length=length)
    config = dataclasses.replace(config, data=data)
    rows = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=NamedSharding(mesh, BATCH_SPEC))
    abstract = isinstance(mesh, AbstractMesh)
    program = Program(config, mesh)
    step, state = make_train_step(program), program.abstract  # before the mesh is set, on which nothing can run
    with jax.sharding.use_abstract_mesh(mesh) if abstract else jax.set_mesh(mesh):
        return step.trace(state, dict.fromkeys(("input_ids", "labels", "segment_ids"), rows))


def gpu_mesh(kind: str, **axes: int) -> AbstractMesh:
    """A mesh of GPUs that JAX names ``kind``."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    sizes = tuple(axes.get(name, 1) for name in AXES)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)
