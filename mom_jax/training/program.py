"""A run's program on a mesh: what is derived from its config, each thing once."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax.models.structure import ModelParts, build_model, model_parts, param_shardings
from mom_jax.trace_cache import kept
from mom_jax.training.config import TrainConfig
from mom_jax.training.extensions import NONE, Extensions
from mom_jax.training.memory import check_memory
from mom_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mom_jax.training.spikes import first_statistics
from mom_jax.training.state import TrainState

# What is read of a config when its programs are traced.
TRACED = ("model", "optimizer", "spikes", "steps", "seed", "gradient_accumulation", "z_loss_scale", "remat")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The model's parts, the optimizer, and the shapes and places of the state, made when first asked for.

    Args:
        config: of the run.
        mesh: with axes ``data``, ``fsdp``, ``sequence`` and ``tensor``; an abstract one will do for tracing.
        own: a caller's own parts.
    """

    config: TrainConfig
    mesh: Mesh
    own: Extensions = NONE

    @cached_property
    def parts(self) -> ModelParts:
        """The model taken apart."""
        return model_parts(self.config.model)

    @cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by the number of updates made."""
        return learning_rate_schedule(self.config.optimizer, self.config.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The caller's own, or clipping and what the config names."""
        own = self.own.transformation(self.schedule)
        return own or make_optimizer(self.config.optimizer, self.schedule, self.parts.decays, self.parts.matrices)

    @cached_property
    def abstract_params(self) -> dict[Any, Any]:
        """Shapes, dtypes and shardings of the parameters, for which no optimizer is made."""
        places = param_shardings(self.parts.abstract, self.mesh)
        return placed(nnx.to_pure_dict(self.parts.abstract), places)

    @cached_property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state: parameters by their metadata, moments like their parameters."""
        shapes = jax.eval_shape(self.state_of, nnx.to_pure_dict(self.parts.abstract))
        whole = NamedSharding(self.mesh, PartitionSpec())
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_params)
        moments = _placed_as(shapes.params, places, shapes.opt_state, whole)
        ema = None if shapes.ema is None else places
        spikes = jax.tree.map(lambda _: whole, shapes.spikes)
        shardings = TrainState(places, moments, whole, whole, whole, whole, ema, spikes)
        return placed(shapes, shardings)

    @property
    def shardings(self) -> TrainState:
        """Where the state's arrays are."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def init_state(self) -> TrainState:
        """The state before the first step, born sharded; bit-identical on every mesh shape.

        Raises:
            InputError: the devices cannot hold it.
        """
        check_memory(self.config, self.abstract, self.mesh)
        with jax.set_mesh(self.mesh):
            first_state = jax.jit(self.first_state, out_shardings=self.shardings)
            return kept(first_state, ("first state", self.about), (), out_shardings=self.shardings)()

    def first_state(self) -> TrainState:
        """What `init_state` compiles."""
        return self.state_of(nnx.to_pure_dict(nnx.split(build_model(self.config.model, self.config.seed))[1]))

    @property
    def about(self) -> tuple[Any, ...]:
        """What steps and first state follow from, and nothing else, for `kept`."""
        read = [getattr(self.config, name) for name in TRACED]
        return read, self.parts.graphdef, self.own.optimizer, self.own.loss

    def state_of(self, params: Any) -> TrainState:
        """The state before the first step with these parameters."""
        # Every leaf gets a buffer of its own, for the step donates them all.
        return TrainState(
            params,
            self.optimizer.init(params),
            jnp.zeros((), jnp.int32),
            jax.random.key_data(jax.random.key(self.config.seed)),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            None if self.config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
            first_statistics(self.config.spikes),
        )


def placed(shapes: Any, places: Any) -> Any:
    """A tree of shapes and dtypes, each with its sharding."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, places)


def _placed_as(params: Any, places: Any, state: Any, other: NamedSharding) -> Any:
    """Where an optimizer's arrays are: one that ends in a parameter's path and has its shape lies where that does."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = {(path, leaf.shape): place for (path, leaf), place in zip(leaves, jax.tree.leaves(places), strict=True)}

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        tails = ((path[start:], leaf.shape) for start in range(len(path)))
        return next((known[tail] for tail in tails if tail in known), other)

    return jax.tree_util.tree_map_with_path(place, state)
