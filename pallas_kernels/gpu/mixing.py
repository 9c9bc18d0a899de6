"""What tokens read: rows of several memories, gathered and summed by weight, as Triton kernels.

    o[t] = sum_j weights[t, j] y[row[t, j]]

The last rows of a token may be there without a weight: they count whole. The backward pass goes through the rows: each
is read once, its gradient written and its product with the token's gradient taken, so that nothing is scattered or
added in memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.arguments import GPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.gpu.calls import like
from pallas_kernels.gpu.launch import launch

# Rows and channels of a block.
CONFIGS = {
    "mix": [Entry(Config(block_m=4, block_n=1024, num_warps=4, num_stages=1))],
    "gradient": [Entry(Config(block_m=4, block_n=512, num_warps=4, num_stages=1))],
}


@triton.jit
def mix_kernel(
    p_y, p_weight, p_row, p_o, rows, tokens,
    COPIES: tl.constexpr, WEIGHTS: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The sum for BM tokens and BN channels."""
    t = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for j in tl.static_range(COPIES):  # pyright: ignore[reportGeneralTypeIssues]
        row = tl.load(p_row + t * COPIES + j, mask=t < tokens, other=rows).to(tl.int64)[:, None]
        b_y = tl.load(p_y + row * WIDTH + channel, mask=(row < rows) & (channel < WIDTH), other=0.0).to(tl.float32)
        if j < WEIGHTS:
            b_y *= tl.load(p_weight + t * WEIGHTS + j, mask=t < tokens, other=0.0)[:, None]
        total += b_y
    kept = (t < tokens)[:, None] & (channel < WIDTH)
    tl.store(p_o + t[:, None] * WIDTH + channel, total.to(p_o.dtype.element_ty), mask=kept)


@triton.jit
def gradient_kernel(
    p_y, p_weight, p_assignment, p_do, p_dy, p_dweight, rows, assignments,
    COPIES: tl.constexpr, WEIGHTS: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of BM rows and of the weights of their assignments; 0 for padding."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    assignment = tl.load(p_assignment + row, mask=row < rows, other=assignments)
    inside = assignment < assignments
    t = assignment // COPIES
    j = assignment % COPIES
    weight = tl.load(p_weight + t * WEIGHTS + j, mask=inside & (j < WEIGHTS), other=1.0)[:, None]
    t = t.to(tl.int64)[:, None]
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, WIDTH, BN):
        channel = start + tl.arange(0, BN)[None, :]
        read = inside[:, None] & (channel < WIDTH)
        b_do = tl.load(p_do + t * WIDTH + channel, mask=read, other=0.0).to(tl.float32)
        b_y = tl.load(p_y + row[:, None] * WIDTH + channel, mask=read, other=0.0).to(tl.float32)
        total += tl.sum(b_do * b_y, axis=1)
        kept = (row < rows)[:, None] & (channel < WIDTH)
        tl.store(p_dy + row[:, None] * WIDTH + channel, (weight * b_do).to(p_dy.dtype.element_ty), mask=kept)
    tl.store(p_dweight + row, total, mask=row < rows)


class _Call(NamedTuple):
    device: str
    interpret: bool


def mix(
    y: jax.Array,
    weights: jax.Array,
    row: jax.Array,
    assignment: jax.Array,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> jax.Array:
    """``o[t] = sum_j weights[t, j] y[row[t, j]]``, differentiable in y and weights.

    Args:
        y: [N, D] rows in float32, bfloat16 or float16.
        weights: [T, k] float32, of the first k assignments of a token; the others count whole.
        row: [T, A] int32 row of each assignment, N for none, which reads 0. No two assignments have the same row.
        assignment: [N] int32, the inverse: flat index into T x A, T * A for rows of none.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        [T, D] in ``y.dtype``; sums in float32.

    Raises:
        Unsupported: a dtype that the kernels do not take.
        ValueError: arrays that do not fit each other.
    """
    GPU.check(device=device, dtype=y.dtype.name)
    if weights.dtype != jnp.float32:
        raise Unsupported(f"weights is {weights.dtype}: the GPU kernels take float32 here")
    fits = y.ndim == row.ndim == weights.ndim == 2 and row.shape[0] == weights.shape[0]
    if not fits or row.shape[1] < weights.shape[1] or assignment.shape != y.shape[:1]:
        found = f"y {y.shape}, weights {weights.shape}, row {row.shape}, assignment {assignment.shape}"
        raise ValueError(f"{found} do not fit: expected [N, D], [T, k], [T, A], [N]")
    return _mix(y, weights, row, assignment, _Call(device, interpret))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mix(y, weights, row, assignment, call):
    (rows, width), (tokens, copies) = y.shape, row.shape
    config = _config("mix", y, call)
    return launch(
        mix_kernel, y, weights, row,
        grid={"tokens": -(-tokens // config.block_m), "blocks": -(-width // config.block_n)},
        outputs=[jax.ShapeDtypeStruct((tokens, width), y.dtype)],
        flops=2 * tokens * copies * width,
        rows=rows, tokens=tokens, **_constants(config, y, weights, row, call),
    )[0]  # fmt: skip


def _forward(y, weights, row, assignment, call):
    return _mix(y, weights, row, assignment, call), (y, weights, row, assignment)


def _backward(call, saved, do):
    y, weights, row, assignment = saved
    config = _config("gradient", y, call)
    dy, dweight = launch(
        gradient_kernel, y, weights, assignment, do,
        grid={"rows": -(-y.shape[0] // config.block_m)},
        outputs=[like(y), jax.ShapeDtypeStruct(y.shape[:1], jnp.float32)],
        flops=3 * y.size,
        rows=y.shape[0], assignments=row.size, **_constants(config, y, weights, row, call),
    )  # fmt: skip
    return dy, dweight.at[row[:, : weights.shape[1]]].get(mode="fill", fill_value=0), None, None


_mix.defvjp(_forward, _backward)


def _config(name, y, call):
    config = find(CONFIGS[name], call.device, y.dtype.itemsize, y.shape[1])
    return config._replace(block_n=min(config.block_n, triton.next_power_of_2(y.shape[1])))


def _constants(config, y, weights, row, call):
    return {
        "COPIES": row.shape[1], "WEIGHTS": weights.shape[1], "WIDTH": y.shape[1],
        "BM": config.block_m, "BN": config.block_n, "num_warps": config.num_warps,
        "num_stages": config.num_stages, "device": call.device, "interpret": call.interpret,
    }  # fmt: skip
