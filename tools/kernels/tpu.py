"""TPUs that are not here: libtpu compiles programs for them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from tools.kernels.equations import calls

# A topology of each generation.
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}


def vmem_limits(mesh: Mesh, function: Callable, *arguments: Any) -> list[int]:
    """Bytes of VMEM that each kernel of a program for the mesh asks for."""
    with jax.set_mesh(mesh):
        return [e.params["compiler_params"].vmem_limit_bytes for e in calls("pallas_call", function, *arguments)]
