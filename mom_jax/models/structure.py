"""A model taken apart: its structure, the shapes of its parameters, and their places on a mesh."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax.errors import InputError
from mom_jax.layers.devices import parameter_spec
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """A model taken apart: its structure, and the shapes and metadata of its parameters."""

    graphdef: Any
    abstract: nnx.State

    @property
    def decays(self) -> dict[Any, Any]:
        """Whether weight decay applies to each parameter, as their metadata say, in a nested dictionary."""
        return nnx.to_pure_dict(decays(self.abstract))

    @property
    def matrices(self) -> dict[Any, Any]:
        """Whether each parameter is a matrix of a product inside the blocks (several on leading axes), as `decays`."""

        def is_matrix(path: tuple[Any, ...], variable: nnx.Variable) -> Any:
            return variable.replace(variable.get_metadata("rounds", False) and len(path) > 1)

        is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(is_matrix, self.abstract, is_leaf=is_variable))

    def merge(self, params: dict[Any, Any]) -> MoMForCausalLM:
        """The model holding ``params`` (a nested dictionary of arrays, or of tracers inside a step)."""
        state = jax.tree.map(lambda leaf: leaf, self.abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graphdef, state)


def decays(params: nnx.State) -> nnx.State:
    """Whether weight decay applies to each parameter (`mom_jax.layers.linear.param`)."""
    return jax.tree.map(
        lambda variable: variable.replace(variable.get_metadata("decays", True)),
        params,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def build_model(config: MoMConfig, seed: int | jax.Array) -> MoMForCausalLM:
    """A freshly initialised model; every model of a run is built here, so that all share one tree structure."""
    with nnx.use_eager_sharding(False):
        return MoMForCausalLM(config, rngs=nnx.Rngs(seed))


def model_parts(config: MoMConfig) -> ModelParts:
    """The parts of a model, without allocating a parameter."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build_model(config, 0)))
    return ModelParts(graphdef, abstract)


def param_shardings(abstract: nnx.State, mesh: Mesh) -> dict[Any, Any]:
    """NamedShardings of the parameters, from the logical axes in their metadata, as a plain nested dictionary.

    Raises:
        InputError: a parameter's dimension does not divide by the mesh axes it is split over.
    """
    specs = nnx.to_pure_dict(nnx.get_partition_spec(abstract))

    def place(path: tuple[Any, ...], array: jax.ShapeDtypeStruct, spec: PartitionSpec | None) -> NamedSharding:
        sharding = NamedSharding(mesh, parameter_spec(spec, mesh))
        try:
            sharding.shard_shape(array.shape)
        except ValueError as error:
            raise InputError(
                "mesh",
                dict(mesh.shape),
                f"does not divide parameter {dotted(path)} of shape {array.shape}, split as {sharding.spec}",
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(place, nnx.to_pure_dict(abstract), specs, is_leaf=lambda x: x is None)


def dotted(path: tuple[Any, ...]) -> str:
    """A parameter's name: the keys on its path in the tree, with dots between them."""
    return ".".join(str(getattr(key, "key", key)) for key in path)
