"""What a memory layer does with the cache besides its recurrence, and where the cache lies on a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.devices import Devices
from mom_jax.ops.documents import DocumentRuns
from mom_jax.ops.segments import Packing, ends_in_last_document
from mom_jax.typing import Array, Float, Mask


def cache_specs(cache: MemoryCache, devices: Devices, whole: tuple[str, ...]) -> Any:
    """The mesh axes that split the arrays of a `MemoryCache`."""
    rows, tensor = devices.rows, devices.tensor
    specs = {
        "recurrent": jax.tree.map(lambda state: P(None, None, rows, *[tensor] * (state.ndim > 3)), cache.recurrent),
        "conv": {name: P(None, None, rows, None, None if name in whole else tensor) for name in cache.conv},
        "document": P(None, rows),
        "length": P(None, rows),
    }
    return dataclasses.replace(cache, **specs)


def note_tokens(cache: MemoryCache, layer: int | Array, attention_mask: Mask | None, time: int) -> MemoryCache:
    """Counts the tokens that were read."""
    read = time if attention_mask is None else jnp.sum(attention_mask != 0, 1, dtype=cache.length.dtype)
    length = jax.lax.dynamic_update_index_in_dim(cache.length, cache.length[layer] + read, layer, 0)
    return dataclasses.replace(cache, length=length)


def forget_earlier_documents(
    cache: MemoryCache,
    layer: int | Array,
    packing: Packing,
    documents: DocumentRuns,
    initial: Float[Array, "G *state"] | None,
) -> MemoryCache:
    """Empties memories that the row's last document did not write, so that the next call finds no earlier document.

    Args:
        initial: what memories begin with, if not empty.
    """
    current = ends_in_last_document(packing, documents)

    def kept(states: Float[Array, "L G B *rest"], empty: Array | float = 0.0) -> Float[Array, "L G B *rest"]:
        mask = current.reshape(current.shape + (1,) * (states.ndim - 3))
        return states.at[layer].set(jnp.where(mask, states[layer], empty).astype(states.dtype))

    return dataclasses.replace(
        cache,
        recurrent=jax.tree.map(kept, cache.recurrent) if initial is None else kept(cache.recurrent, initial[:, None]),
        conv=jax.tree.map(kept, cache.conv),
        document=cache.document.at[layer].set(documents.number),
    )
