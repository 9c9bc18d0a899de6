"""What every memory rule offers to the layers that use it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.ops.chunks import chunk_rows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class MemoryRule(nnx.Module):
    """How memories are written, forget and are read: G of them at once, over packed rows.

    A rule holds the projections that make rows out of tokens and calls one primitive of
    `mom_jax.ops`. Parameters named in ``per_memory`` have a leading axis G, one slice for each
    memory; all memories share the others. Those named in ``per_row`` are shared and yet applied
    once for each memory that a token goes to. ``whole_history`` names the convolutions whose
    inputs belong to no head. ``impl`` chooses the implementation of the primitive (`mom_jax.ops.dispatch`).

    Args:
        num_heads, key_dim, value_dim: H, and K and V per head.
    """

    per_memory: ClassVar[tuple[str, ...]]
    per_row: ClassVar[tuple[str, ...]] = ()
    whole_history: ClassVar[tuple[str, ...]] = ()
    impl: str = "auto"

    def __init__(self, num_heads: int, key_dim: int, value_dim: int):
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        raise NotImplementedError

    def chunk_rows(self, time: int) -> int:
        """Alignment of packed segments for rows of ``time`` tokens; 1 for a single step."""
        return chunk_rows(time, self.key_dim, self.impl)

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        raise NotImplementedError

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that convolutions remember: (tokens, channels) by name."""
        return {}

    def couple_layers(self) -> None:
        """Computes in place, from the stacked parameters, those that depend on other layers; a model calls it."""

    def head_numbers(self, local: int) -> Float[Array, " local"]:
        """Numbers of the ``local`` heads that this device holds, from 0 to H - 1, as floats."""
        first = 0 if local == self.num_heads else local * jax.lax.axis_index("tensor")
        return jnp.arange(local, dtype=jnp.float32) + first

    def state_shapes(self) -> Any:
        """Shape of the float32 state of one memory, or a tuple of them in a `jax.ShapeDtypeStruct` each."""
        return jax.ShapeDtypeStruct((self.num_heads, self.key_dim, self.value_dim), jnp.float32)
