"""How a layer runs on a mesh: each device has its own tokens, heads and channels, and whole parameters for one pass.

Rows of a batch are split over the axes ``data`` and ``fsdp``, their tokens over ``sequence``, heads and channels over
``tensor``. A parameter's dimension that is marked ``fsdp`` is split over ``fsdp`` and ``sequence``. Inside a layer it
is gathered in the dtype of the layer's input. Its gradient comes back as a sum of which each device gets its part, in
float32: many bfloat16 addends lose digits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mom_jax.errors import InputError
from mom_jax.ops.precision import widened
from mom_jax.typing import Array, Float

ROWS, TENSOR, SEQUENCE = ("data", "fsdp"), "tensor", "sequence"
PARAMETERS = ("fsdp", SEQUENCE)  # what ``fsdp`` means for a parameter
Result = TypeVar("Result")
_Split = tuple[tuple[int, tuple[str, ...]], ...]  # dimensions, and the axes that each is split over


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the tokens of one call are.

    Attributes:
        mesh: that is set.
        rows: axes that split the batch; none if they do not divide it, as for a single prompt.
        time: axes that split their tokens; none if they do not divide them.
    """

    mesh: AbstractMesh
    rows: tuple[str, ...]
    time: tuple[str, ...]

    @classmethod
    def of(cls, batch: int, time: int) -> Self | None:
        """For [batch, time] tokens; None on one device, and where each device's own part runs already."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
            return None
        return cls(mesh, _dividing(mesh, ROWS, batch), _dividing(mesh, (SEQUENCE,), time))

    @property
    def tokens(self) -> P:
        """Of arrays [B, T, ...]."""
        return P(self.rows, self.time)

    @property
    def tensor(self) -> str | None:
        """The axis that splits heads and channels, where there is one."""
        return TENSOR if self.mesh.shape.get(TENSOR, 1) > 1 else None

    @property
    def token_axes(self) -> tuple[str, ...]:
        """The axes that split tokens, of rows and of a batch."""
        return self.rows + self.time

    def sharing_tokens(self, time: int) -> Self:
        """The same with rows of ``time`` tokens split over the tensor axis too, where it divides them."""
        return dataclasses.replace(self, time=_dividing(self.mesh, (*self.time, TENSOR), time) or self.time)

    def summed(self, x: Result) -> Result:
        """On a device, the sum over those that hold the other heads or channels."""
        return x if self.tensor is None else jax.lax.psum(x, self.tensor)

    def check_heads(self, count: int) -> None:
        """Raises an InputError if the tensor axis does not divide so many heads."""
        parts = self.mesh.shape.get(TENSOR, 1)
        if count % parts:
            raise InputError("mesh.tensor", parts, f"must divide the number of heads ({count})")

    def whole_rows(self, x: Float[Array, "B T heads K"]) -> Float[Array, "B T heads K"]:
        """The same array, each device with all tokens of its rows, and with its own part of the heads."""
        place = P(self.rows, None, P.UNCONSTRAINED, None)
        return jax.lax.with_sharding_constraint(x, place)

    def spec(self, parameter: Array, spec: P | None) -> P:
        """How a parameter enters a layer, from the axes in its metadata; whole if it cannot be divided.

        A scanned slice has lost its layer axis, which the metadata still have.
        """
        places = [_axes(place) for place in parameter_spec(spec, self.mesh)]
        places = [()] * (parameter.ndim - len(places)) + places[len(places) - parameter.ndim :] if places else []
        sized = zip(places, parameter.shape, strict=False)
        return P(*(axes if axes == (TENSOR,) else _dividing(self.mesh, axes, size) for axes, size in sized))

    def run(
        self, module: nnx.Module, call: Callable[..., Result], inputs: Any, specs: Any, outs: Any, dtype: DTypeLike
    ) -> Result:
        """``call(module, *inputs)`` on each device, its ``module`` with the parameters of its own heads and channels.

        Args:
            module, call: what runs.
            inputs, specs: arrays, and how they are split.
            outs: how results are split.
            dtype: of what rounds parameters.
        """
        graph, params = nnx.split(module)
        of_params = jax.tree.map(self.spec, params, nnx.get_partition_spec(params))
        dtypes = jax.tree.map(
            lambda variable: variable.replace(dtype if variable.get_metadata("rounds", False) else variable[...].dtype),
            params,
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )

        def local(params: nnx.State, *inputs: Any) -> Result:
            params = jax.tree.map(functools.partial(whole, axes=PARAMETERS, looped=True), params, of_params, dtypes)
            return call(nnx.merge(graph, params), *inputs)

        return self.map(local, (of_params, *specs), outs)(params, *inputs)

    def map(self, local: Callable[..., Result], specs: Any, outs: Any) -> Callable[..., Result]:
        """``local`` on each device's own parts, as specs split arguments and results."""
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=outs, check_vma=False)


def _dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of the axes that have several devices, if all of them together divide ``size``; else none."""
    several = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return several if size % math.prod(mesh.shape[axis] for axis in several) == 0 else ()


def parameter_spec(spec: P | None, mesh: Mesh | AbstractMesh) -> P:
    """Where a parameter lies on a mesh, from the axes in its metadata."""
    marked = (PARAMETERS if place == "fsdp" else (place,) for place in tuple(spec or ()))
    return P(*(tuple(axis for axis in axes if axis in mesh.shape) for axes in marked))


def _axes(place: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes that split one dimension."""
    return (place,) if isinstance(place, str) else tuple(place or ())


def whole(
    x: Float[Array, "..."],
    spec: P,
    dtype: DTypeLike,
    axes: tuple[str, ...] = (*PARAMETERS, TENSOR),
    looped: bool = False,
) -> Float[Array, "..."]:
    """On a device, a parameter in ``dtype`` with what the other devices of ``axes`` hold of it.

    ``looped``: inside a loop over layers, where XLA finds the best layout of what is scattered by itself.
    """
    places = [tuple(axis for axis in _axes(place) if axis in axes) for place in spec]
    split = tuple((dimension, names) for dimension, names in enumerate(places) if names)
    return _gathered(x, split, jnp.dtype(dtype), x.dtype, looped) if split else x.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(
    x: Float[Array, "..."], split: _Split, dtype: DTypeLike, source: DTypeLike, looped: bool
) -> Float[Array, "..."]:
    x = x.astype(dtype)
    for dimension, axes in split:
        x = jax.lax.all_gather(x, axes, axis=dimension, tiled=True)
    return x


def _gathered_fwd(x: Float[Array, "..."], *options: Any) -> tuple[Float[Array, "..."], None]:
    return _gathered(x, *options), None


def _gathered_bwd(
    split: _Split, dtype: DTypeLike, source: DTypeLike, looped: bool, _: None, dx: Float[Array, "..."]
) -> tuple[Float[Array, "..."]]:
    dx = widened(dx)
    for dimension, axes in reversed(split):
        dx = dx if looped else _outermost(dx, dimension)
        dx = jax.lax.psum_scatter(dx, axes, scatter_dimension=dimension, tiled=True)
    return (dx.astype(source),)


def _outermost(x: Float[Array, "..."], dimension: int) -> Float[Array, "..."]:
    """The same array with ``dimension`` as the outermost in memory.

    Else XLA for TPUs may sum the array whole on every device, at twice the bytes, and then take a slice of it.
    """
    if dimension == 0:
        return x
    return with_layout_constraint(x, Layout((dimension, *(other for other in range(x.ndim) if other != dimension))))


_gathered.defvjp(_gathered_fwd, _gathered_bwd)
