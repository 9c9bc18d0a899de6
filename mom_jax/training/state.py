"""What a run carries from step to step, and how it starts."""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax.errors import InputError
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
    """The state before the first step, born sharded; bit-identical on every mesh shape.

    Raises:
        InputError: the devices cannot hold it.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(config, mesh)
    _check_memory(config, abstract, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh):
        return jax.jit(lambda: _init(config, optimizer), out_shardings=shardings)()


def _check_memory(config: TrainConfig, abstract: TrainState, mesh: Mesh) -> None:
    """Refuses what cannot fit whatever the compiler does: the state, gradients and one layer's input on each device."""
    rows = config.data.batch_size // config.gradient_accumulation // (mesh.shape["data"] * mesh.shape["fsdp"])
    channels = config.model.hidden_size * jnp.dtype(config.model.compute_dtype).itemsize
    state = _bytes(abstract) + _bytes(abstract.params)
    needed, there = state + rows * config.data.sequence_length * channels, _device_memory(mesh)
    if needed > there:
        state_in_words = f"{_gigabytes(state)} for parameters, gradients and moments"
        remedy = f"are needed on each device at least ({state_in_words}), but it has {_gigabytes(there)}; "
        remedy += "make model or batch smaller, or take more devices"
        raise InputError("memory", _gigabytes(needed), remedy)


def _bytes(tree: Any) -> int:
    """Bytes of a tree of arrays on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _device_memory(mesh: Mesh) -> int:
    """Bytes of each device; devices of the host share its memory."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
