"""What programs of operators are made for: an operator at a size, and where rows lie."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mom_jax.ops.documents import count_documents
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing, plan_packing
from tools.hardware.programs import Program, Sizes, stored


class Case(NamedTuple):
    """An operator at a size."""

    sizes: Sizes
    operator: str
    primitive: Primitive | None  # None: no recurrence
    size: int
    dtype: str

    @property
    def name(self) -> str:
        """The beginning of the names of its programs."""
        return f"{self.operator} {self.size} {self.dtype}"

    @property
    def by_mosaic(self) -> bool:
        """Whether there are kernels by Mosaic GPU too."""
        kernels = {} if self.primitive is None or self.sizes.impl != "gpu" else self.primitive.kernels
        return "mosaic" in kernels and self.size >= 128 and self.dtype == "bfloat16"


@functools.cache
def ragged(chunk: int, shared: bool = False) -> Packing:
    """Empty and one-token segments, whole and ragged chunks, padding and documents, in two rows and four memories."""
    tokens = np.array([[1, 2 * chunk + 1, 0, chunk], [17, 0, 5, chunk + 6]])
    longest, rng = int(tokens.sum(1).max()), np.random.default_rng(1)
    memories, keep = np.zeros((2, longest, 1), np.int32), np.zeros((2, longest), np.int32)
    for row, counts in enumerate(tokens):
        count = int(counts.sum())
        memories[row, :count, 0], keep[row, :count] = rng.permutation(np.repeat(np.arange(4), counts)), 1
    numbers = np.repeat([0, 1, 2, 1], [40, 1, 30, longest])[:longest]
    documents = count_documents(np.stack([numbers, numbers // 2]), keep := jnp.asarray(keep))
    return plan_packing(
        jnp.asarray(memories), 4, shared=shared, chunk_size=chunk, attention_mask=keep, documents=documents
    )


@functools.cache
def published(batch: int, time: int, chunk: int) -> Packing:
    """Top-2 of four memories and a shared one, at random."""
    choices = np.argsort(np.random.default_rng(0).random((batch, time, 4)))[..., :2]
    return plan_packing(jnp.asarray(choices, jnp.int32), 4, shared=True, chunk_size=chunk)


def timed_program(
    packing: Packing,
    way: str,
    forward: Callable,
    training: Callable,
    arguments: tuple[Any, ...],
    do: Any,
    arrays: dict[str, np.ndarray],
) -> Program:
    """One way, ``forward`` or ``training``, over the rows of `published`; the latter takes ``do`` too."""
    _, mask = stored("published", packing.valid)
    function, arguments = (forward, arguments) if way == "forward" else (training, (*arguments, do))
    tokens = packing.row.shape[0] * packing.row.shape[1]
    arrays = {**arrays, **mask, "published lengths": np.asarray(packing.length)}
    return Program("", "", function, arguments, mask="published/0", arrays=arrays, tokens=tokens)
