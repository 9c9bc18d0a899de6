"""Checks of the arguments of kernels; each error is one line that says what they accept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.configs import AMD, NVIDIA

FLOAT32 = ("float32",)
Expected = tuple[jax.Array, tuple[int, ...], tuple[str, ...]]  # an argument, its shape, and the dtypes it may have


def like(x: jax.Array | jax.ShapeDtypeStruct | None) -> Any:
    """An output of the same shape and dtype; None of None."""
    return None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)


class Limits(NamedTuple):
    """Sizes and dtypes that the kernels of a platform have programs for."""

    platform: str
    keys: tuple[int, ...]  # K
    values: tuple[int, ...]  # V
    chunks: tuple[int, ...]  # C
    dtypes: tuple[str, ...]  # of rows
    devices: tuple[str, ...]  # generations; empty: all

    def check(self, **chosen: int | str) -> None:
        """Raises `Unsupported` for the first of K, V, chunk, dtype and device without a program."""
        choices: dict[str, Any] = dict(zip(("K", "V", "chunk", "dtype", "device"), self[1:], strict=True))
        for name, value in chosen.items():
            if value not in choices[name]:
                taken = ", ".join(map(str, choices[name]))
                raise Unsupported(f"{name}={value}: the {self.platform} kernels take {taken}")

    def check_arrays(self, expected: Mapping[str, Expected]) -> None:
        """Whether arrays, by name, are what they should be.

        Raises:
            Unsupported: a dtype for which there is no kernel.
            ValueError: another shape.
        """
        for name, (x, shape, dtypes) in expected.items():
            if x.shape != shape:
                raise ValueError(f"{name} has shape {x.shape}: expected {shape}")
            if x.dtype.name not in dtypes:
                taken = " or ".join(dtypes)
                raise Unsupported(f"{name} is {x.dtype.name}: the {self.platform} kernels take {taken} here")


TPU = Limits("TPU", (64, 128, 256), (64, 128, 256, 512), (16, 32, 64, 128), ("float32", "bfloat16"), ())
GPU = Limits(
    "GPU",
    (16, 32, 64, 128, 256),
    (16, 32, 64, 128, 256, 512),
    (16, 32, 64),
    ("float32", "bfloat16", "float16"),
    (*NVIDIA, *AMD),
)


def check(
    limits: Limits,
    q: jax.Array,
    v: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    others: Mapping[str, Expected],
) -> int:
    """Whether the arguments of a recurrence fit the kernels and each other.

    Args:
        limits: of the kernels.
        q, v: rows [N, H, K] and [N, H, V].
        chunks: their chunks.
        initial_state: [S, H, K, V] float32 or None.
        others: the further arguments by name, with what they should be.

    Returns:
        The rows C of a chunk.

    Raises:
        Unsupported: a size or dtype for which there is no kernel.
        ValueError: an argument whose shape does not fit the others.
    """
    for name, x in (("q", q), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name} has shape {x.shape}: expected three axes, [N, H, channels]")
    (rows, heads, keys), values, count = q.shape, v.shape[-1], chunks.segment.shape[0]
    if count == 0 or rows % count:
        raise ValueError(f"chunks.segment has {count} chunks: expected a divisor of the {rows} rows of q")
    limits.check(K=keys, V=values, dtype=q.dtype.name, chunk=rows // count)
    segments = chunks.runs.shape[0] - 1 if initial_state is None else initial_state.shape[0]
    expected: dict[str, Expected] = {
        "v": (v, (rows, heads, values), limits.dtypes),
        **others,
        "chunks.segment": (chunks.segment, (count,), ("int32",)),
        "chunks.first": (chunks.first, (count,), ("bool",)),
        "chunks.last": (chunks.last, (count,), ("bool",)),
        "chunks.runs": (chunks.runs, (segments + 1, 3), ("int32",)),
    }
    if chunks.document is not None:
        expected["chunks.document"] = (chunks.document, (rows,), ("int32",))
    if initial_state is not None:
        expected["initial_state"] = (initial_state, (segments, heads, keys, values), FLOAT32)
    limits.check_arrays(expected)
    return rows // count
