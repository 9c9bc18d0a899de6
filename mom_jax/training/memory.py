"""Whether a run can fit into the memory of its devices."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax.errors import InputError
from mom_jax.training.config import TrainConfig
from mom_jax.training.state import TrainState


def check_memory(config: TrainConfig, abstract: TrainState, mesh: Mesh) -> None:
    """Refuses what cannot fit whatever the compiler does: the state, gradients and one layer's input on each device.

    Raises:
        InputError: it is more than the devices have.
    """
    rows = config.data.batch_size // config.gradient_accumulation // (mesh.shape["data"] * mesh.shape["fsdp"])
    channels = config.model.hidden_size * jnp.dtype(config.model.compute_dtype).itemsize
    state = device_bytes(abstract) + device_bytes(abstract.params)
    tokens = rows * config.data.sequence_length // mesh.shape["sequence"]
    needed, available = state + tokens * channels, _device_memory(mesh)
    if needed > available:
        state_in_words = f"{in_words(state)} for parameters, gradients and moments"
        remedy = f"is the least that each device needs ({state_in_words}), but it has {in_words(available)}; "
        remedy += "make the model or the batch smaller, or use more devices"
        raise InputError("memory", in_words(needed), remedy)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _device_memory(mesh: Mesh) -> int:
    """Bytes of each device; devices of the host share its memory."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)


def in_words(size: float) -> str:
    """Bytes in the unit that suits them: ``3.2 GiB``."""
    unit = next((unit for unit in (3, 2, 1) if size >= 1024**unit), 0)
    return f"{size / 1024**unit:,.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}" if unit else f"{size:,.0f} B"
