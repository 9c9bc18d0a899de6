"""What the recurrences on a TPU take, said in one line where it is not what they are given."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import parts

KEYS = (64, 128, 256)
VALUES = (64, 128, 256, 512)
CHUNKS = (16, 32, 64, 128)
DTYPES = ("float32", "bfloat16")
GATE = ("float32",)

Expected = tuple[jax.Array, tuple[int, ...], tuple[str, ...]]  # an argument, its shape, and the dtypes it may have


def refusal(
    q_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    chunk: int,
    vmem_bytes: Callable[[int, int, str, int], tuple[int, int]],
) -> str | None:
    """Why kernels that need ``vmem_bytes(K, V, dtype, C)`` do not take rows q [N, H, K] and v [N, H, V], or None."""
    keys, values, name = q_shape[-1], v_shape[-1], jnp.dtype(dtype).name
    allowed = {"K": (keys, KEYS), "V": (values, VALUES), "dtype": (name, DTYPES), "chunk": (chunk, CHUNKS)}
    for argument, (value, choices) in allowed.items():
        if value not in choices:
            return f"{argument}={value}: the TPU kernels take {', '.join(map(str, choices))}"
    target, need = parts.device(), max(vmem_bytes(keys, values, name, chunk))
    if need <= target.vmem:
        return None
    return (
        f"K={keys}, V={values}, chunk={chunk} in {name} need {need / 2**20:.0f} MiB of VMEM, of which "
        f"{target.generation} has {target.vmem / 2**20:.0f}: take smaller chunks"
    )


def chunk_rows(q: jax.Array, v: jax.Array, chunks: Chunks) -> int:
    """The rows C of a chunk.

    Raises:
        ValueError: q or v is no [N, H, channels], or N is no multiple of the chunks.
    """
    for name, x in (("q", q), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name} has shape {x.shape}: expected three axes, [N, H, channels]")
    count = chunks.segment.shape[0]
    if count == 0 or q.shape[0] % count:
        raise ValueError(f"chunks.segment has {count} chunks: expected a divisor of the {q.shape[0]} rows of q")
    return q.shape[0] // count


def check(
    q: jax.Array, v: jax.Array, chunks: Chunks, initial_state: jax.Array | None, others: Mapping[str, Expected]
) -> None:
    """That every argument has the shape and dtype that belong to rows q [N, H, K] and v [N, H, V].

    Raises:
        ValueError: the first that does not, with what it should have.
    """
    rows, heads, keys = q.shape
    count = chunks.segment.shape[0]
    expected: dict[str, Expected] = {"v": (v, (rows, heads, v.shape[-1]), DTYPES), **others}
    expected |= {
        "chunks.segment": (chunks.segment, (count,), ("int32",)),
        "chunks.first": (chunks.first, (count,), ("bool",)),
        "chunks.last": (chunks.last, (count,), ("bool",)),
    }
    if chunks.document is not None:
        expected["chunks.document"] = (chunks.document, (rows,), ("int32",))
    if initial_state is not None:
        shape = (*initial_state.shape[:1], heads, keys, v.shape[-1])
        expected["initial_state"] = (initial_state, shape, GATE)
    for name, (x, shape, dtypes) in expected.items():
        if x.shape != shape or x.dtype.name not in dtypes:
            raise ValueError(f"{name} is {x.dtype.name} {x.shape}: expected {' or '.join(dtypes)} {shape}")
