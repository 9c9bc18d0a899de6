"""TPUs that are not here: libtpu compiles programs for them."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from tools.kernels.equations import calls
from tools.kernels.targets import mesh_of

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
    return mesh_of(devices, axes)


def vmem_limits(mesh: Mesh, function: Callable, *arguments: Any) -> list[int]:
    """Bytes of VMEM that each kernel of a program for the mesh asks for."""
    with jax.set_mesh(mesh):
        return [e.params["compiler_params"].vmem_limit_bytes for e in calls("pallas_call", function, *arguments)]
