"""Short convolutions along the segments of packed rows as Triton kernels: from projected tokens to a recurrence's rows.

    t_n = sum_w weight[:, W-1-w] x_(n-w) + bias;   z = silu(t);   y = z / sqrt(sum of z^2 over a head + EPS)

A program walks down the rows of one chunk with a block of their channels, a head where heads are normalised. It keeps
the W-1 rows before in registers, so that every row is read once; rows that are copies of tokens it gathers. The
backward pass keeps x alone: it computes t again, and walks W-1 rows into the next chunk, which saw the last ones of its
own. Gradients of the filters are summed by chunk and then over chunks; nothing is added atomically.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton

from pallas_kernels import convolutions
from pallas_kernels.arguments import GPU, like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.convolutions import EPS, Tables, of_copies
from pallas_kernels.gpu.launch import launch
from pallas_kernels.gpu.short_conv_kernels import backward_kernel, forward_kernel

CHANNELS = 256  # of a program, where no head is normalised

# A chunk and block is one warp's, so that a head's sum stays inside it; block_m rows are read at once.
CONFIGS = {
    "forward": [Entry(Config(block_m=4, num_warps=1, num_stages=1))],
    "backward": [Entry(Config(block_m=2, num_warps=1, num_stages=1))],
}


class Call(NamedTuple):
    """What the kernels depend on beside the arrays."""

    segments: int
    activate: bool
    head: int | None  # channels of a head that is normalised
    device: str
    interpret: bool


def short_conv(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    state: jax.Array | None,
    chunks: Chunks,
    reach: jax.Array | None,
    token: jax.Array | None,
    copies: jax.Array | None,
    segments: int,
    activate: bool,
    head: int | None,
    normalise: bool,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> jax.Array:
    """Rows after the convolution, SiLU and the L2 norm of each head (module docstring), differentiable.

    Args:
        x: [N, D] rows in float32, bfloat16 or float16; with ``token``, [tokens, D].
        weight: [D, W], W from 2 to 8.
        bias: [D] or None.
        state: [segments, W-1, D] inputs before each segment, the oldest first; None is 0.
        chunks: of the rows; their documents are not read.
        reach: [N] int32, how many rows before it a row sees, 0 where a document begins; None: W-1.
        token: [N] int32 token of each row, beyond the last for padding; None: x has the rows.
        copies: [tokens, A] int32 rows of each token, N for none; with ``token``.
        segments: S.
        activate: SiLU.
        head: channels of a head; None: there are no heads.
        normalise: each head by its L2 norm.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        [N, D] in ``x.dtype``; of no meaning in padding rows.

    Raises:
        Unsupported: sizes or dtypes that the kernels do not run.
        ValueError: shapes that do not fit each other.
    """
    GPU.check(device=device)
    tables = Tables(chunks._replace(document=None), reach, token, copies)
    convolutions.check(GPU, x, weight, bias, state, tables, segments, head)
    call = Call(segments, activate, head if normalise else None, device, interpret)
    return _short_conv(x, weight, bias, state, tables, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _short_conv(x, weight, bias, state, tables, call):
    outputs = [jax.ShapeDtypeStruct((tables.rows(x), x.shape[1]), x.dtype)]
    return _run("forward", forward_kernel, (x, weight, bias, state, tables), (), outputs, call)[0]


def _forward(x, weight, bias, state, tables, call):
    return _short_conv(x, weight, bias, state, tables, call), (x, weight, bias, state, tables)


def _backward(call, residuals, dy):
    _, weight, bias, state, tables = residuals
    chunks, (channels, taps) = tables.chunks.segment.shape[0], weight.shape
    sums = jax.ShapeDtypeStruct((chunks, channels, taps + (bias is not None)), jnp.float32)
    dx, sums, dstate = _run("backward", backward_kernel, residuals, (dy,), [like(dy), sums, like(state)], call)
    sums = jnp.sum(sums, 0)
    if tables.copies is not None:
        dx = of_copies(dx, tables.copies)
    dbias = None if bias is None else sums[:, taps].astype(bias.dtype)
    return dx, sums[:, :taps].astype(weight.dtype), dbias, tables.chunks.where_visited(dstate, 0), None


_short_conv.defvjp(_forward, _backward)


def _run(name, kernel, arguments, cotangents, outputs, call):
    x, weight, bias, state, (chunks, reach, token, _) = arguments
    channels, taps = weight.shape
    config, width = find(CONFIGS[name], call.device, x.dtype.itemsize, channels), call.head or min(channels, CHANNELS)
    count, rows = chunks.segment.shape[0], outputs[0].shape[0]
    return launch(
        kernel, x, weight, bias, state, reach, token, chunks.segment, chunks.first, chunks.last, *cotangents,
        grid={"blocks": count * -(-channels // width)}, outputs=outputs, interpret=call.interpret, device=call.device,
        num_warps=config.num_warps, num_stages=config.num_stages, flops=2 * rows * channels * taps,
        BIAS=bias is not None, STATE=state is not None, DOCUMENTS=reach is not None, GATHER=token is not None,
        ACTIVATE=call.activate, NORM=call.head is not None, EPS=EPS, SEGMENTS=call.segments, TOKENS=x.shape[0],
        D=channels, W=taps, C=rows // count, WIDTH=width, BK=triton.next_power_of_2(width),
        ROWS=min(config.block_m, rows // count),
    )  # fmt: skip
