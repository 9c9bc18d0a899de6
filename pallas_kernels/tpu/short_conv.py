"""Short convolutions along the segments of packed rows on a TPU: from projected rows to those that a recurrence reads.

    t_n = sum_w weight[:, W-1-w] x_(n-w) + bias;   z = silu(t);   y = z / sqrt(sum of z^2 over a head + EPS)

A kernel has a chunk and a block of heads at a time. It lays the chunk's rows behind the last ones of the chunk before
in VMEM, where a tap is a slice, and writes y as the recurrences' kernels read it, heads first: the two transpositions
that stand between them in the program cancel. The backward pass keeps x alone; it goes through the chunks in reverse,
and hands on what the first rows of a chunk give to the last ones of the chunk before.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import convolutions
from pallas_kernels.arguments import TPU
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.convolutions import Tables, of_copies, of_tokens
from pallas_kernels.tpu import calls, short_conv_kernels
from pallas_kernels.tpu.calls import LANES, Interpret, Operand
from pallas_kernels.tpu.layout import heads_first, pack_table, rows_first, segment_of
from pallas_kernels.tpu.short_conv_kernels import BEFORE

CONFIGS = {name: [Entry(Config(block_h=4))] for name in ("forward", "backward")}
# Float32 arrays that a kernel keeps from step to step, of BEFORE rows and so many chunks, and those it needs beside.
_SCRATCH = {"forward": {"rows": 1}, "backward": {"rows": 1, "grads": 1, "carry": 0}}
_ARRAYS = {"forward": 12, "backward": 20}


class Call(NamedTuple):
    """What the kernels depend on beside the arrays."""

    segments: int
    activate: bool
    head: int  # K; D where there are no heads
    normalise: bool
    interpret: Interpret


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
    interpret: Interpret = False,
) -> jax.Array:
    """Rows after the convolution, SiLU and the L2 norm of each head (module docstring), differentiable.

    Args:
        x: [N, D] rows in float32 or bfloat16; with ``token``, [tokens, D], which XLA gathers.
        interpret: run on the host, without a TPU.
        others: as in `pallas_kernels.gpu.short_conv`.

    Returns:
        [N, D] in ``x.dtype``; of no meaning in padding rows.

    Raises:
        Unsupported: sizes or dtypes that the kernels do not take.
        ValueError: shapes that do not fit each other.
    """
    tables = Tables(chunks._replace(document=None), reach, token, copies)
    convolutions.check(TPU, x, weight, bias, state, tables, segments, head)
    call = Call(segments, activate, head or x.shape[1], normalise, interpret)
    _check_vmem(x, tables.rows(x) // chunks.segment.shape[0], call)
    return _short_conv(x, weight, bias, state, tables, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _short_conv(x, weight, bias, state, tables, call):
    rows = x if tables.token is None else of_tokens(x, tables.token)
    y = jax.ShapeDtypeStruct((rows.shape[1] // call.head, rows.shape[0], call.head), x.dtype)
    arrays = _arrays(rows, weight, bias, state, tables)
    return rows_first(_run("forward", arrays, {"y": y}, tables, call)["y"]).reshape(rows.shape)


def _forward(x, weight, bias, state, tables, call):
    return _short_conv(x, weight, bias, state, tables, call), (x, weight, bias, state, tables)


def _backward(call, residuals, dy):
    x, weight, bias, state, tables = residuals
    rows = x if tables.token is None else of_tokens(x, tables.token)
    arrays = _arrays(rows, weight, bias, state, tables)
    arrays["dy"] = heads_first(dy.reshape(rows.shape[0], -1, call.head))
    outputs = {
        "dx": jax.ShapeDtypeStruct(rows.shape, x.dtype),
        "dweight": jax.ShapeDtypeStruct(arrays["weight"].shape, jnp.float32),
        "dbias": None if bias is None else jax.ShapeDtypeStruct((1, *bias.shape), jnp.float32),
        "dstate": None if state is None else jax.ShapeDtypeStruct((call.segments + 1, *state.shape[1:]), state.dtype),
    }
    got = _run("backward", arrays, outputs, tables, call)
    dx = got["dx"] if tables.copies is None else of_copies(got["dx"], tables.copies)
    dbias = None if bias is None else got["dbias"][0].astype(bias.dtype)
    dstate = tables.chunks.where_visited(got.get("dstate"), 0)
    return dx, got["dweight"].T.astype(weight.dtype), dbias, dstate, None


_short_conv.defvjp(_forward, _backward)


def _arrays(x, weight, bias, state, tables):
    """The kernels' inputs by name."""
    reach = None if tables.reach is None else tables.reach.reshape(tables.chunks.segment.shape[0], 1, -1)
    weight = weight.T.astype(jnp.float32)
    bias = None if bias is None else bias.astype(jnp.float32)[None]
    return {"x": x, "before": x, "weight": weight, "bias": bias, "state": state, "reach": reach}


def _run(name, arrays, outputs, tables, call):
    """The outputs of a kernel by name."""
    (rows, channels), taps, chunks = arrays["x"].shape, arrays["weight"].shape[0], tables.chunks.segment.shape[0]
    heads = _heads_per_block(name, arrays["x"], call.head)
    block, last = _Block(rows // chunks, heads, call.head, taps), chunks - 1
    specs = _specs(block, call.segments, (lambda step: last - step) if name == "backward" else (lambda step: step))
    operands = ({n: None if a is None else Operand(a, specs[n]) for n, a in of.items()} for of in (arrays, outputs))
    constants = {"last": last, "segments": call.segments, "activate": call.activate, "normalise": call.normalise}
    return calls.launch(
        functools.partial(getattr(short_conv_kernels, name), **constants),
        pack_table(tables.chunks),
        *operands,
        grid=(channels // block.width, chunks),
        scratch={n: (BEFORE + more * block.rows, block.width) for n, more in _SCRATCH[name].items()},
        vmem=_vmem(name, block),
        flops=2 * rows * channels * taps,
        transcendentals=rows * channels,
        interpret=call.interpret,
    )


class _Block(NamedTuple):
    """What a program has of the rows."""

    rows: int  # C
    heads: int
    head: int
    taps: int

    @property
    def width(self) -> int:
        return self.heads * self.head


def _specs(block, segments, place):
    """The blocks of every array, for the chunk at ``place`` of a grid step."""
    size, width, history = block.rows, block.width, (None, block.taps - 1, block.width)
    rows = pl.BlockSpec((size, width), lambda h, c, table: (place(c), h))
    by_head = pl.BlockSpec((block.heads, size, block.head), lambda h, c, table: (h, place(c), 0))
    taps = pl.BlockSpec((block.taps, width), lambda h, c, table: (0, h))
    bias = pl.BlockSpec((1, width), lambda h, c, table: (0, h))

    def before(h, c, table):
        return jnp.maximum(place(c) * (size // BEFORE) - 1, 0), h

    def stored(h, c, table):
        return segment_of(table[place(c)]), 0, h

    def loaded(h, c, table):
        return jnp.minimum(segment_of(table[place(c)]), segments - 1), 0, h

    return {
        **dict.fromkeys(("x", "dx"), rows),
        **dict.fromkeys(("y", "dy"), by_head),
        **dict.fromkeys(("weight", "dweight"), taps),
        **dict.fromkeys(("bias", "dbias"), bias),
        "before": pl.BlockSpec((BEFORE, width), before),
        "reach": pl.BlockSpec((None, 1, size), lambda h, c, table: (place(c), 0, 0)),
        "state": pl.BlockSpec(history, loaded),
        "dstate": pl.BlockSpec(history, stored),
    }


def _heads_per_block(name, x, head):
    """The most heads that the configuration allows of those that fill lanes, or all."""
    heads = x.shape[1] // head
    most = find(CONFIGS[name], calls.device().generation, x.dtype.itemsize, head).block_h or 1
    fitting = [n for n in range(1, most + 1) if heads % n == 0 and n * head % LANES == 0]
    return max(fitting, default=heads)


def _vmem(name, block):
    """Bytes of VMEM of a kernel."""
    return 4 * (_ARRAYS[name] + len(_SCRATCH[name])) * (BEFORE + block.rows) * max(block.width, LANES)


def _check_vmem(x, rows, call):
    need = max(_vmem(n, _Block(rows, _heads_per_block(n, x, call.head), call.head, 0)) for n in CONFIGS)
    calls.check_vmem(need, f"D={x.shape[1]}, chunk={rows}")
