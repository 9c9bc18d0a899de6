"""One token for each of N rows through a short convolution, its inputs before them where they lie: for decoding.

As `pallas_kernels.gpu.short_conv` has it, a row at a time: a program reads the W-1 inputs before a row, writes what
follows of the convolution, SiLU and norm, and moves the inputs on by one, in place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton

from pallas_kernels.arguments import GPU, like
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.convolutions import EPS, TAPS, of_tokens
from pallas_kernels.gpu.launch import launch
from pallas_kernels.gpu.short_conv import CHANNELS
from pallas_kernels.gpu.short_conv_kernels import step_kernel

CONFIGS = {"step": [Entry(Config(num_warps=1, num_stages=1))]}


class Rows(NamedTuple):
    """Where a row's token and its inputs before it are."""

    token: jax.Array | None  # [N] int32, beyond the last for none; None: x has the rows
    place: jax.Array  # [N] int32, all different; negative: nothing comes before, and nothing is written
    reset: jax.Array | None  # [N] bool: a document begins, what came before counts as 0; None: nowhere


class Call(NamedTuple):
    """What the kernel depends on beside the arrays."""

    activate: bool
    head: int | None  # channels of a head
    normalise: bool
    device: str
    interpret: bool


def short_conv_step(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    states: jax.Array,
    token: jax.Array | None,
    place: jax.Array,
    reset: jax.Array | None,
    activate: bool,
    head: int | None,
    normalise: bool,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Rows [N, D] in ``x.dtype`` of one token each, and the states after it (module docstring), differentiable.

    Args:
        x: [N, D], or with ``token`` [tokens, D]; float32, bfloat16 or float16.
        weight: [D, W], W from 2 to 8.
        bias: [D] or None.
        states: [.., W-1, D], inputs before, the oldest first.
        token, place, reset: `Rows`.
        activate: SiLU.
        head: channels of a head; None: there are no heads.
        normalise: each head by its L2 norm.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Rows, 0 where a row has no token and no bias, and the states, of which those that no row names are untouched.

    Raises:
        Unsupported: sizes or dtypes that the kernel does not run.
    """
    GPU.check(dtype=x.dtype.name, device=device)
    if weight.shape[1] not in TAPS:
        raise Unsupported(f"taps={weight.shape[1]}: the GPU kernels take {TAPS.start} to {TAPS.stop - 1}")
    call = Call(activate, head, normalise, device, interpret)
    return _step(x, weight, bias, states, Rows(token, place, reset), call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _step(x, weight, bias, states, rows, call):
    channels, taps = weight.shape
    count, width = rows.place.shape[0], call.head or min(channels, CHANNELS)
    config = find(CONFIGS["step"], call.device, x.dtype.itemsize, channels)
    y, after = launch(
        step_kernel, x, weight, bias, *rows, states,
        grid={"blocks": count * -(-channels // width)}, outputs=[jax.ShapeDtypeStruct((count, channels), x.dtype),
        like(states)], aliases={6: 1}, interpret=call.interpret, device=call.device,
        moved=count * channels * (2 * (taps - 1) * states.dtype.itemsize + 2 * x.dtype.itemsize),
        num_warps=config.num_warps, num_stages=config.num_stages, flops=2 * count * channels * taps,
        BIAS=bias is not None, GATHER=rows.token is not None, RESETS=rows.reset is not None, ACTIVATE=call.activate,
        NORM=call.normalise, EPS=EPS, TOKENS=x.shape[0], D=channels, W=taps, WIDTH=width,
        BK=triton.next_power_of_2(width),
    )  # fmt: skip
    return y, after


def _forward(x, weight, bias, states, rows, call):
    return _step(x, weight, bias, states, rows, call), (x, weight, bias, states, rows)


def _backward(call, residuals, cotangents):
    *arrays, rows = residuals
    return *jax.vjp(functools.partial(_plain, rows=rows, call=call), *arrays)[1](cotangents), None


_step.defvjp(_forward, _backward)


def _plain(x, weight, bias, states, rows, call):
    """The same in JAX, for gradients: whoever asks for them keeps all states anyway."""
    flat = states.reshape(-1, *states.shape[-2:])
    place = jnp.where(rows.place < 0, flat.shape[0], rows.place)
    before = flat.at[place].get(mode="fill", fill_value=0)
    if rows.reset is not None:
        before = jnp.where(rows.reset[:, None, None], 0, before)
    own = x if rows.token is None else of_tokens(x, rows.token)
    inputs = jnp.concatenate([before.astype(jnp.float32), own[:, None].astype(jnp.float32)], 1)
    y = jnp.einsum("nwd,dw->nd", inputs, weight.astype(jnp.float32)) + (0 if bias is None else bias)
    y = jax.nn.silu(y) if call.activate else y
    if call.normalise:
        heads = y.reshape(*y.shape[:1], -1, call.head or y.shape[1])
        y = (heads * jax.lax.rsqrt(jnp.sum(heads * heads, -1, keepdims=True) + EPS)).reshape(y.shape)
    after = flat.at[place].set(inputs[:, 1:].astype(flat.dtype), mode="drop")
    return y.astype(x.dtype), after.reshape(states.shape)
