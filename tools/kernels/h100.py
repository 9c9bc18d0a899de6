"""An H100 that is not here: XLA compiles whole programs for it from a description of the card.

Triton kernels are assembled by the ptxas that ``jax[cuda12]`` brings, as on the card itself.
"""

import jax.experimental.topologies
from jax.sharding import Mesh

from tools.kernels.targets import mesh_of

# From the data sheet of the SXM5 card and CUDA's device query.
DESCRIPTION = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 12 minor: 9 patch: 0 }
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
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
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
}
"""


def mesh(**axes: int) -> Mesh:
    """A mesh of one H100; ``axes`` are names with size 1."""
    topology = jax.experimental.topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=DESCRIPTION, topology="1x1x1"
    )
    return mesh_of(topology.devices, axes)
