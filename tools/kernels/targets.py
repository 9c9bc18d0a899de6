"""Compiles programs for devices that are not here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# A product's kernel cannot be timed where there is no GPU: XLA takes the one that it would begin with.
_OPTIONS = {"gpu": {"xla_gpu_autotune_level": 0}}


def mesh_of(devices: Sequence[Any], axes: Mapping[str, int]) -> Mesh:
    """The first devices as a mesh of such axes; one device without any."""
    sizes = axes or {"data": 1}
    used = devices[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=used, axis_types=(AxisType.Auto,) * len(sizes))


def compiled(mesh: Mesh, function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    """Compiles ``function`` for arrays (or their shapes) that every device of the mesh holds whole.

    ``donate`` numbers the arguments whose memory results may take.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), arguments)
    with jax.set_mesh(mesh):
        return compile_lowered(mesh, jax.jit(function, donate_argnums=donate).lower(*placed))


def compile_lowered(mesh: Mesh, lowered: Any) -> Any:
    """Compiles what was lowered for a mesh."""
    return lowered.compile(compiler_options=_OPTIONS.get(mesh.devices.flat[0].platform))
