"""The constant-size state that decoding carries from call to call."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mom_jax.typing import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryCache:
    """The memories of all layers: G memories (the shared one last) for each of B rows.

    Its size does not depend on how many tokens were read. Layers index it in place, so a step
    touches the memories it writes and no others.
    """

    recurrent: Float[Array, "L G B H K V"]  # float32
    conv: dict[str, Float[Array, "L G B W-1 channels"]]  # last inputs of each convolution, oldest first
    document: Int[Array, "L G B"]  # the document (segment id) that each memory holds

    @classmethod
    def zeros(
        cls,
        layers: int,
        memories: int,
        batch: int,
        state: tuple[int, int, int],
        conv: dict[str, tuple[int, int]],
        dtype: DTypeLike,
    ) -> Self:
        """Empty memories.

        Args:
            state: (H, K, V).
            conv: (W-1, channels) of each short convolution.
            dtype: of the convolution inputs; the memories are float32.
        """
        lead = (layers, memories, batch)
        return cls(
            recurrent=jnp.zeros((*lead, *state), jnp.float32),
            conv={name: jnp.zeros((*lead, *shape), dtype) for name, shape in conv.items()},
            document=jnp.zeros(lead, jnp.int32),
        )
