"""Inputs as descriptions: what travels instead of arrays, drawn again from its seed where the programs run."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EVERYWHERE_ALIKE = 1 << 21  # elements up to which NumPy draws, in float64; larger arrays are drawn on the device


@dataclasses.dataclass(frozen=True)
class Draw:
    """One input array.

    Attributes:
        kind: a name in `KINDS`; ``stored`` for an array of the folder, ``output`` for what another program gave.
        shape, dtype: of the array.
        seed: of the random numbers.
        scale: what they are multiplied by; of ``integers``, the number that they are below.
        source: of ``stored``, the array's name; of ``output``, the program's.
        place: of ``output``, its number.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    seed: int = 0
    scale: float = 1.0
    source: str = ""
    place: int = 0

    def moved_to(self, seed: int) -> "Draw":
        """The same with other random numbers."""
        return dataclasses.replace(self, seed=self.seed + seed)

    @property
    def bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def _unit(x: Any, np: Any) -> Any:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


# From normal numbers, with NumPy or jax.numpy.
KINDS = {
    "normal": lambda x, np: x,
    "unit": _unit,  # vectors of length 1 along the last axis
    "log gate": lambda x, np: -0.3 * np.logaddexp(x, 0),  # of a trained layer's size
    "share": lambda x, np: 1 / (1 + np.exp(-x)),
}


def drawn(draw: Draw) -> jax.Array:
    """The array of a description that is neither ``stored`` nor ``output``."""
    if draw.kind == "zeros":
        return jnp.zeros(draw.shape, draw.dtype)
    if draw.kind == "integers":
        random = np.random.default_rng(draw.seed)
        return jnp.asarray(random.integers(0, int(draw.scale), draw.shape), draw.dtype)
    if math.prod(draw.shape) > EVERYWHERE_ALIKE:
        return _on_device(draw.kind, draw.shape, draw.dtype, draw.scale, draw.seed)
    normal = np.random.default_rng(draw.seed).standard_normal(draw.shape)
    return jnp.asarray((draw.scale * KINDS[draw.kind](normal, np)).astype(jnp.dtype(draw.dtype)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _on_device(kind: str, shape: tuple[int, ...], dtype: str, scale: float, seed: int) -> jax.Array:
    normal = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return (scale * KINDS[kind](normal, jnp)).astype(dtype)
