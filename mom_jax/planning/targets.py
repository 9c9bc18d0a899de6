"""Devices that are not here: XLA compiles whole programs for them on this machine."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mom_jax.planning.chips import Topology, find_topology
from mom_jax.planning.compilers import find_compiler

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# A product's kernel cannot be timed where there is no GPU: XLA takes the one that it would begin with. A program for
# simulated devices is read and not run.
_OPTIONS = {"gpu": {"xla_gpu_autotune_level": 0}, "cpu": {"xla_backend_optimization_level": 0}}

# From the data sheet of the SXM5 card and CUDA's device query.
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{kind}"
runtime_version {{ major: 12 minor: 9 patch: 0 }}
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
}}
"""


def devices(topology: Topology) -> Sequence[Any]:
    """The devices of a topology, for compiling; nothing runs on them.

    Raises:
        InputError: its compiler is not installed.
    """
    chip, shape = topology.chip, topology.shape
    find_compiler(chip.platform)
    if chip.platform == "cuda":
        description = _HOPPER.format(kind=chip.kind, bandwidth=chip.bandwidth, memory=chip.memory)
        size = "x".join(map(str, (1, *shape)))
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=description, topology=size
        ).devices
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A machine holds four chips, unless there is one alone.
    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.devices == 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices


def mesh(topology: str, **axes: int) -> Mesh:
    """A mesh of the first devices of a topology; of one device without ``axes``."""
    sizes = axes or {"data": 1}
    used = devices(find_topology(topology))[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=used, axis_types=(AxisType.Auto,) * len(sizes))


def abstract_mesh(kind: str, platform: str, **axes: int) -> AbstractMesh:
    """A mesh of devices that JAX names ``kind``, for tracing and lowering alone."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), abstract_device=device
    )


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
