"""The device mesh, and where every array of a run lives on it."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.training.config import MeshConfig, TrainConfig

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))  # rows of the batch


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh with axes ``data``, ``fsdp`` and ``tensor`` over all devices of all processes.

    Raises:
        InputError: the axis sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    devices, fixed = jax.device_count(), math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if math.prod(sizes) != devices:
        shown = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(
            "mesh", shown, f"must multiply to the number of devices ({devices}); -1 takes what is left over"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_fit(config: TrainConfig, mesh: Mesh) -> None:
    """Checks that model and batch divide over the mesh.

    Raises:
        InputError: heads over ``tensor``, hidden size over ``fsdp``, or rows of a micro-batch over
            ``data * fsdp`` leave a rest.
    """
    model: MoMConfig = config.model
    rows = config.data.batch_size // config.gradient_accumulation
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for field, size, over, parts in (
        ("mesh.tensor", model.num_heads, "model.num_heads", mesh.shape["tensor"]),
        ("mesh.fsdp", model.hidden_size, "model.hidden_size", mesh.shape["fsdp"]),
        ("mesh.data * mesh.fsdp", rows, "data.batch_size / gradient_accumulation", ways),
    ):
        if size % parts:
            raise InputError(field, parts, f"must divide {over} ({size})")


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows ``[B / processes, T]`` as global arrays ``[B, T]``, rows split over ``data`` and ``fsdp``."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
