"""The device mesh, and where every array of a run lives on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mom_jax.errors import InputError
from mom_jax.layers.devices import ROWS, SEQUENCE
from mom_jax.layers.recurrence import cannot_hand_over
from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.training.config import MeshConfig, TrainConfig

AXES = ("data", "fsdp", "sequence", "tensor")  # neighbours along the last ones exchange most
BATCH_SPEC = PartitionSpec(ROWS, SEQUENCE)  # rows of the batch, and their tokens


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The sizes of the mesh's axes; -1 is what the others leave.

    Raises:
        InputError: they do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: devices // fixed if size == -1 and devices % fixed == 0 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(
            "mesh", shown, f"must multiply to the number of devices ({devices}); -1 takes what is left over"
        )
    return sizes


def make_mesh(config: MeshConfig, over: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes ``data``, ``fsdp``, ``sequence`` and ``tensor`` over all devices, or those given.

    Raises:
        InputError: the axis sizes do not multiply to the number of devices.
    """
    over = jax.devices() if over is None else over
    sizes = mesh_sizes(config, len(over))
    grid = device_grid(tuple(sizes[axis] for axis in AXES), over)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the form of a mesh, those that exchange most beside each other.

    Slices (of a multislice TPU, or nodes with GPUs), between which the network is slow, lie along the first axes that
    they divide. Inside a slice any sizes do, also those that cut across the torus of a TPU's chips.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    between, left = [], slices
    for size in sizes:
        between.append(math.gcd(size, left))
        left //= between[-1]
    inside = [size // over for size, over in zip(sizes, between, strict=True)]
    if slices == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def check_fit(config: TrainConfig, mesh: Mesh) -> None:
    """Checks that model and batch divide over the mesh, and that the model can hand states from device to device.

    Raises:
        InputError: heads over ``tensor``, hidden size over ``fsdp * sequence``, tokens of a row over ``sequence``, or
            rows of a micro-batch over ``data * fsdp`` leave a rest; or the memory rule refuses ``sequence``.
    """
    model: MoMConfig = config.model
    rows = config.data.batch_size // config.gradient_accumulation
    sizes = dict.fromkeys(AXES, 1) | dict(mesh.shape)
    ways, shards = sizes["data"] * sizes["fsdp"], sizes["fsdp"] * sizes["sequence"]
    for field, size, over, parts in (
        ("mesh.tensor", model.num_heads, "model.num_heads", sizes["tensor"]),
        ("mesh.fsdp", model.hidden_size, "model.hidden_size", sizes["fsdp"]),
        ("mesh.sequence", config.data.sequence_length, "data.sequence_length", sizes["sequence"]),
        ("mesh.fsdp * mesh.sequence", model.hidden_size, "model.hidden_size", shards),
        ("mesh.data * mesh.fsdp", rows, "data.batch_size / gradient_accumulation", ways),
    ):
        if size % parts:
            raise InputError(field, parts, f"must divide {over} ({size})")
    if sizes["sequence"] > 1 and "memory" in model.layer_kinds:
        _check_rule(model, sizes["sequence"])


def _check_rule(model: MoMConfig, pieces: int) -> None:
    if model.reference_conv_leak:
        raise InputError("mesh.sequence", pieces, "must be 1 with model.reference_conv_leak")
    mixer: Any = nnx.eval_shape(lambda: make_mixer(model, "memory", nnx.Rngs(0)))
    primitive = mixer.rule.primitive
    if primitive.handover is None:
        raise InputError("mesh.sequence", pieces, f"must be 1 for {model.memory_rule}: {cannot_hand_over(primitive)}")


def rows_of_process(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """The rows that a process, this one if None, reads for its devices: (i, n), the i-th of n equal parts of a batch.

    Processes whose devices hold parts of the same rows, as along ``sequence`` and ``tensor``, read the same ones.

    Raises:
        InputError: rows of two processes overlap, but are not the same.
    """
    places = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    blocks: dict[int, set[int]] = {}
    for block, devices in enumerate(places):
        for device in devices:
            blocks.setdefault(device.process_index, set()).add(block)
    parts = sorted({tuple(sorted(own)) for own in blocks.values()})
    if sum(map(len, parts)) != len(places) or len(set(map(len, parts))) != 1:
        raise InputError("mesh", dict(mesh.shape), "must give each process whole blocks of rows, or share them equally")
    own = tuple(sorted(blocks[jax.process_index() if process is None else process]))
    return parts.index(own), len(parts)


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows ``[B / processes, T]`` as global arrays ``[B, T]``, split as `BATCH_SPEC` says."""
    sharding, (_, count) = NamedSharding(mesh, BATCH_SPEC), rows_of_process(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        shape = (rows.shape[0] * count, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: place(np.asarray(rows)) for name, rows in batch.items()}
