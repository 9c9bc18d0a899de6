"""What a program of the folder is made of, before it is exported."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mom_jax.planning.targets import abstract_mesh
from mom_jax.training.config import MeshConfig
from mom_jax.training.sharding import AXES, make_mesh
from tools.hardware.draws import Draw


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is made; `FULL` for a GPU, `TINY` to try the way there and back on a CPU."""

    platform: str  # that programs are exported for
    impl: str  # that stands for the kernels
    operators: tuple[int, ...]  # K = V
    dtypes: tuple[str, ...]
    chunk: int
    batch: int
    time: int
    heads: int
    head_dim: int
    preset: str
    decoded: int  # tokens
    prompt: int
    batches: tuple[int, ...]  # of decoding

    def context(self) -> contextlib.AbstractContextManager:
        """In which to trace what is exported."""
        return contextlib.nullcontext() if self.platform == "cpu" else jax.sharding.use_abstract_mesh(self.mesh)

    @property
    def mesh(self) -> Any:
        """One device of the kind that programs are for."""
        if self.platform == "cpu":
            return make_mesh(MeshConfig(1, 1, 1))
        return abstract_mesh("NVIDIA H100", "gpu", **dict.fromkeys(AXES, 1))


FULL = Sizes("cuda", "gpu", (256, 128, 64), ("bfloat16", "float32"), 64, 8, 2048, 4, 256, "mom-340m", 64, 128, (1, 32))
TINY = Sizes("cpu", "xla", (16,), ("float32",), 16, 2, 40, 2, 16, "mom-tiny", 4, 16, (1,))


@dataclasses.dataclass(frozen=True)
class Program:
    """A function, descriptions of its arguments, and what is asked of it; fields as in `folder.Entry`.

    ``arguments`` are trees whose leaves are `Draw`; the function returns a dictionary of trees. ``carried`` is the
    number of the argument that its ``state`` takes the place of; ``right`` computes the same in float64.
    """

    name: str
    section: str
    function: Callable[..., Mapping[str, Any]]
    arguments: tuple[Any, ...]
    against: str = ""
    tolerance: float = 0.0
    mask: str = ""
    tokens: int = 0
    carried: int | None = None
    right: Callable[..., Mapping[str, Any]] | None = None
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # that are stored
    exact: bool = False  # products of float32 in full precision


def outputs_of(name: str, shapes: Any) -> Any:
    """The arrays that another program gives, as `Draw`, in a tree of their shapes."""
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [Draw("output", x.shape, str(x.dtype), source=name, place=place) for place, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)


def stored(name: str, values: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A tree of arrays as `Draw`, and what to store for it."""
    leaves, tree = jax.tree.flatten(values)
    arrays = {f"{name}/{place}": np.asarray(x) for place, x in enumerate(leaves)}
    drawn = [Draw("stored", x.shape, str(x.dtype), source=key) for key, x in arrays.items()]
    return jax.tree.unflatten(tree, drawn), arrays


def shape_of(draw: Draw) -> jax.ShapeDtypeStruct:
    """Of the array."""
    return jax.ShapeDtypeStruct(draw.shape, draw.dtype)
