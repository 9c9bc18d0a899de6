"""What the short convolutions of both platforms have in common: their arguments, and rows that are copies of tokens."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import Limits
from pallas_kernels.chunks import Chunks, Unsupported

TAPS = range(2, 9)
EPS = 1e-6  # of the L2 norm


class Tables(NamedTuple):
    """Where rows come from, and how far they see."""

    chunks: Chunks  # documents left out
    reach: jax.Array | None  # [N] int32: how many rows before it a row sees; None: W-1
    token: jax.Array | None  # [N] int32: the token of each row, beyond the last for none; None: rows are given
    copies: jax.Array | None  # [tokens, A] int32: the rows of each token, N for none

    def rows(self, x: jax.Array) -> int:
        """N."""
        return x.shape[0] if self.token is None else self.token.shape[0]


def check(
    limits: Limits,
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    state: jax.Array | None,
    tables: Tables,
    segments: int,
    head: int | None,
) -> None:
    """Whether the arguments fit the kernels and each other.

    Raises:
        Unsupported: a size or dtype for which there is no kernel.
        ValueError: an argument whose shape does not fit the others.
    """
    chunks, reach, _, copies = tables
    rows, count = tables.rows(x), chunks.segment.shape[0]
    if x.ndim != 2 or weight.ndim != 2:
        raise ValueError(f"x has shape {x.shape} and weight {weight.shape}: expected [N, D] and [D, W]")
    if count == 0 or rows % count:
        raise ValueError(f"chunks.segment has {count} chunks: expected a divisor of the {rows} rows")
    limits.check(dtype=x.dtype.name, chunk=rows // count)
    channels, taps = weight.shape
    if taps not in TAPS:
        raise Unsupported(f"taps={taps}: the {limits.platform} kernels take {TAPS.start} to {TAPS.stop - 1}")
    if head is not None and (head > max(limits.values) or channels % head):
        raise Unsupported(f"head={head}: the {limits.platform} kernels take divisors of D up to {max(limits.values)}")
    expected = {
        "weight": (weight, (x.shape[1], taps)),
        "bias": (bias, (channels,)),
        "state": (state, (segments, taps - 1, channels)),
        "chunks.first": (chunks.first, (count,)),
        "chunks.last": (chunks.last, (count,)),
        "chunks.runs": (chunks.runs, (segments + 1, 3)),
        "reach": (reach, (rows,)),
        "copies": (copies, (x.shape[0], *([] if copies is None else copies.shape[1:]))),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}: expected {shape}")


def of_tokens(x: jax.Array, token: jax.Array) -> jax.Array:
    """Rows [N, D] that are copies of tokens [tokens, D]; 0 where ``token`` names none."""
    return x.at[token].get(mode="fill", fill_value=0)


def of_copies(dx: jax.Array, copies: jax.Array) -> jax.Array:
    """The gradient of `of_tokens`: sums of rows [N, D] over each token's ``copies`` [tokens, A]."""
    return functools.reduce(jnp.add, (dx.at[rows].get(mode="fill", fill_value=0) for rows in copies.T))
