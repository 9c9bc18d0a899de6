"""Compiles programs with libtpu for TPUs that are not there."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tools.kernels.equations import calls

# A topology of each generation, and what JAX calls its devices.
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
KINDS = {"v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "v5p": "TPU v5"}
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def mesh(generation: str, **axes: int) -> Mesh:
    """A mesh of devices of a TPU generation; one device without ``axes``."""
    os.environ.update(_ENVIRONMENT)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[generation]).devices
    sizes = axes or {"data": 1}
    used = devices[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=used, axis_types=(AxisType.Auto,) * len(sizes))


def compiled(mesh: Mesh, function: Callable, *arguments: Any) -> Any:
    """Compiles ``function`` for arrays that every device of the mesh holds whole."""
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), arguments)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed).compile()


def vmem_limits(mesh: Mesh, function: Callable, *arguments: Any) -> list[int]:
    """Bytes of VMEM that each kernel of a program for the mesh asks for."""
    with jax.set_mesh(mesh):
        return [e.params["compiler_params"].vmem_limit_bytes for e in calls("pallas_call", function, *arguments)]
