"""What tokens read, as Triton kernels: rows of several memories gathered, summed by weight, normed and gated.

For each head of a token, with f and g activations of which none, one or both are there, and a norm or none:

    x = sum_j weights[t, j] y[row[t, j]];   b = f(x);   o = b / sqrt(mean(b^2) + eps) * scale * g(gate[t])

The last rows of a token may be there without a weight: they count whole. A program has heads of tokens that follow
each other. The backward pass computes x and b again and writes the gradient of each row that a token reads, so that
nothing is scattered or added in memory; programs of their own write 0 to the rows that nobody reads.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import triton

from pallas_kernels.arguments import FLOAT32, GPU, Expected, like
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.gpu.launch import launch
from pallas_kernels.gpu.mixing_kernels import backward_kernel, forward_kernel

ACTIVATIONS = ("silu", "sigmoid")
# Values of rows that a program holds at once, and the heads that one goes through backward.
CONFIGS = {
    "forward": [Entry(Config(block_n=4096, num_warps=4, num_stages=1))],
    "backward": [Entry(Config(block_m=64, block_n=4096, num_warps=4, num_stages=1))],
}


class _Call(NamedTuple):
    before: str | None
    activation: str | None  # of the gate; None without one
    eps: float
    device: str
    interpret: bool


class _Reads(NamedTuple):
    """What is mixed, and what follows, as arrays; in the kernels' order."""

    y: jax.Array
    weights: jax.Array
    row: jax.Array
    scale: jax.Array | None
    gate: jax.Array | None
    assignment: jax.Array  # for gradients

    @property
    def units(self) -> int:
        """Heads of all tokens."""
        return self.row.shape[0] * self.y.shape[1]


def mixing(
    y: jax.Array,
    weights: jax.Array,
    scale: jax.Array | None,
    gate: jax.Array | None,
    row: jax.Array,
    assignment: jax.Array,
    before: str | None = None,
    activation: str = "silu",
    eps: float = 0.0,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> jax.Array:
    """Mixed, normed and gated reads, differentiable in y, weights, scale and gate.

    Args:
        y: [N, H, V] rows in float32, bfloat16 or float16.
        weights: [T, k] float32, of the first k assignments of a token, or [T, k, H] of their heads; the others count
            whole.
        scale: [V] float32 of the norm; None: there is no norm.
        gate: [T, H, V] in the dtype of y; None: there is no gate.
        row: [T, A] int32 row of each assignment, N for none, which reads 0. No two tokens have the same row.
        assignment: [N] int32, the inverse: flat index into T x A, T * A for rows of none.
        before: f, ``silu`` or ``sigmoid``; None: there is none.
        activation: g, of the gate.
        eps: of the norm.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        [T, H, V] in ``y.dtype``; computed in float32 and rounded once.

    Raises:
        Unsupported: a dtype or an activation that the kernels do not take.
        ValueError: arrays that do not fit each other.
    """
    GPU.check(device=device, dtype=y.dtype.name)
    reads = _Reads(y, weights, row, scale, gate, assignment)
    _check(reads)
    for name in (before, activation):
        if name not in (None, *ACTIVATIONS):
            raise Unsupported(f"{name}: the GPU kernels take {' and '.join(ACTIVATIONS)} here")
    return _mix(reads, _Call(before, None if gate is None else activation, float(eps), device, interpret))


def _check(reads: _Reads) -> None:
    y, weights, row, scale, gate, assignment = reads
    if y.ndim != 3 or row.ndim != 2 or weights.ndim not in (2, 3) or weights.shape[1] > row.shape[1]:
        found = f"y {y.shape}, weights {weights.shape}, row {row.shape}"
        raise ValueError(f"{found} do not fit: expected [N, H, V], [T, k] or [T, k, H], [T, A]")
    (rows, heads, values), (tokens, _) = y.shape, row.shape
    expected: dict[str, Expected] = {
        "weights": (weights, (tokens, weights.shape[1], *(heads,) * (weights.ndim - 2)), FLOAT32),
        "assignment": (assignment, (rows,), ("int32",)),
    }
    if scale is not None:
        expected["scale"] = (scale, (values,), FLOAT32)
    if gate is not None:
        expected["gate"] = (gate, (tokens, heads, values), (y.dtype.name,))
    GPU.check_arrays(expected)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _mix(reads, call):
    y, config = reads.y, _config("forward", reads, call)
    return launch(
        forward_kernel, *reads[:5],
        grid={"heads": -(-reads.units // config.block_m)},
        outputs=[jax.ShapeDtypeStruct((reads.row.shape[0], *y.shape[1:]), y.dtype)],
        flops=2 * reads.row.size * y[0].size,
        **_constants(config, reads, call),
    )[0]  # fmt: skip


def _forward(reads, call):
    return _mix(reads, call), reads


def _backward(call, reads, do):
    y, (tokens, _), number = reads.y, reads.row.shape, reads.weights.shape[1]
    config = _config("backward", reads, call)
    part = find(CONFIGS["backward"], call.device, y.dtype.itemsize, y.shape[2]).block_m
    programs = -(-reads.units // part)
    outputs = [
        like(y),
        jax.ShapeDtypeStruct((tokens, number, y.shape[1]), jnp.float32),
        None if reads.scale is None else jax.ShapeDtypeStruct((programs, y.shape[2]), jnp.float32),
        like(reads.gate),
    ]
    dy, dweights, dscale, dgate = launch(
        backward_kernel, *reads, do,
        grid={"programs": programs + -(-y.shape[0] * y.shape[1] // part)},
        outputs=outputs, flops=6 * reads.row.size * y[0].size,
        assignments=reads.row.size, programs=programs, PART=part, **_constants(config, reads, call),
    )  # fmt: skip
    dweights = dweights if reads.weights.ndim == 3 else jnp.sum(dweights, -1)
    dscale = None if reads.scale is None else jnp.sum(dscale, 0)
    return (reads._replace(y=dy, weights=dweights, scale=dscale, gate=dgate, row=None, assignment=None),)


_mix.defvjp(_forward, _backward)


def _config(name: str, reads: _Reads, call: _Call) -> Config:
    """Heads and channels of a block, in powers of two."""
    config = find(CONFIGS[name], call.device, reads.y.dtype.itemsize, reads.y.shape[2])
    channels = triton.next_power_of_2(reads.y.shape[2])
    held = triton.next_power_of_2(reads.row.shape[1]) * channels
    return config._replace(block_m=max(1, config.block_n // held), block_n=channels)


def _constants(config: Config, reads: _Reads, call: _Call) -> dict[str, Any]:
    y, weights, row, scale, *_ = reads
    return {
        "rows": y.shape[0], "units": reads.units, "HEADS": y.shape[1], "V": y.shape[2], "COPIES": row.shape[1],
        "WEIGHTS": weights.shape[1], "OF_HEADS": weights.ndim == 3, "BEFORE": call.before, "NORM": scale is not None,
        "GATE": call.activation, "EPS": call.eps, "BM": config.block_m, "BV": config.block_n,
        "num_warps": config.num_warps, "num_stages": config.num_stages, "device": call.device,
        "interpret": call.interpret,
    }  # fmt: skip
