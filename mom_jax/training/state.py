"""What a run carries from step to step, and how it starts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax.models.parts import build_model, model_parts, param_shardings
from mom_jax.training.config import TrainConfig
from mom_jax.training.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and replaces; also what a checkpoint holds.

    ``params`` is a nested dictionary of float32 arrays, ``opt_state`` Optax's own; ``step`` counts
    the batches used, ``bad_steps`` the latest skipped ones in a row, ``bad_total`` all skipped ones
    (int32 scalars); ``rng`` is the raw uint32 key that any randomness inside a step folds ``step``
    into. The same structure carries the arrays' shapes and shardings.
    """

    params: Any
    opt_state: Any
    step: Any
    rng: Any
    bad_steps: Any
    bad_total: Any


def _init(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    params = nnx.to_pure_dict(nnx.split(build_model(config.model, config.seed))[1])
    # Every leaf gets a buffer of its own, for the step donates them all.
    return TrainState(
        params,
        optimizer.init(params),
        jnp.zeros((), jnp.int32),
        jax.random.key_data(jax.random.key(config.seed)),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the run's state: parameters by their metadata, moments like their parameters."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(lambda: _init(config, optimizer))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = param_shardings(model_parts(config.model).abstract, mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, shapes.opt_state, placed, transform_non_params=lambda _: whole
    )
    shardings = TrainState(placed, moments, whole, whole, whole, whole)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def init_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The state before the first step, born sharded; bit-identical on every mesh shape."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(lambda: _init(config, optimizer), out_shardings=shardings)()
