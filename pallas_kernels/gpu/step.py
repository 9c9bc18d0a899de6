"""One token for each of N rows, from states where they lie and back: a Triton kernel for decoding.

Per row and head, with a state S of shape [K, V], in float32 while it is here:

    u = S^T a;   o = scale * (S^T r + (q.b) u + (q.k) v);   S' = diag(kept) S + b u^T + k v^T

What every recurrence on matrices comes to, one step at a time. Decoding is bound by the bytes of its states: here each
is read once and written once, in place, where a gather, products and a scatter pass over it five times. Kept in
bfloat16 they are half of that, and rounded once for each token.
"""

# Triton's annotations do not describe what its compiler accepts for constexpr.
# pyright: reportArgumentType=false

import functools

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.arguments import GPU, like
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.gpu.launch import launch

CONFIGS = {"step": [Entry(Config(block_v=32, num_warps=4, num_stages=1))]}


@triton.jit
def step_kernel(
    p_r, p_q, p_k, p_v, p_kept, p_a, p_b, p_place, p_states, p_o,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr,
    RANK_ONE: tl.constexpr,
):  # fmt: skip
    """One row and head, and BV of the value channels."""
    row = tl.program_id(0).to(tl.int64)
    head = row % HEADS
    k = tl.arange(0, K)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    b_q, b_k, b_v = tl.load(p_q + row * K + k), tl.load(p_k + row * K + k), tl.load(p_v + row * V + v)
    place = tl.load(p_place + row // HEADS).to(tl.int64)
    known = place + tl.zeros((K, BV), tl.int64) >= 0  # a block, for the interpreter takes no scalar as a mask
    p_state = p_states + ((place * HEADS + head) * K + k)[:, None] * V + v[None, :]
    b_state = tl.load(p_state, mask=known, other=0.0).to(tl.float32)
    b_o = tl.sum(b_state * tl.load(p_r + row * K + k)[:, None], 0) + tl.sum(b_q * b_k, 0) * b_v
    b_next = b_state * tl.load(p_kept + row * K + k)[:, None] + b_k[:, None] * b_v[None, :]
    if RANK_ONE:
        b_b = tl.load(p_b + row * K + k)
        b_u = tl.sum(b_state * tl.load(p_a + row * K + k)[:, None], 0)
        b_o += tl.sum(b_q * b_b, 0) * b_u
        b_next += b_b[:, None] * b_u[None, :]
    tl.store(p_o + row * V + v, (SCALE * b_o).to(p_o.dtype.element_ty))
    tl.store(p_state, b_next.to(p_states.dtype.element_ty), mask=known)


def step(
    r: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kept: jax.Array,
    a: jax.Array | None,
    b: jax.Array | None,
    place: jax.Array,
    states: jax.Array,
    scale: float,
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Outputs and new states of one token for each row (module docstring).

    Args:
        r, q, k, kept, a, b: [N, H, K] float32; a and b None: nothing is of rank one.
        v: [N, H, V] float32.
        place: [N] int32, which state each row reads and writes, all different; negative: 0, and none is written.
        states: [.., H, K, V], float32 or bfloat16.
        scale: of the output.
        dtype: of the output; sums are in float32.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        Outputs [N, H, V], and the states, of which those that no row names are untouched.

    Raises:
        Unsupported: sizes that the kernel does not run.
    """
    GPU.check(K=k.shape[-1], V=v.shape[-1], device=device)
    return _step((r, q, k, v, kept, a, b), place, states, scale, jnp.dtype(dtype), device, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _step(token, place, states, scale, dtype, device, interpret):
    _, _, k, v, _, a, _ = token
    (rows, heads, keys), values = k.shape, v.shape[-1]
    config = find(CONFIGS["step"], device, states.dtype.itemsize, max(keys, values))
    block = min(config.block_v or values, values)
    o, after = launch(
        step_kernel, *token, place, states,
        grid={"rows and heads": rows * heads, "blocks": values // block},
        outputs=[jax.ShapeDtypeStruct(v.shape, dtype), like(states)], aliases={8: 1},
        interpret=interpret, device=device,
        moved=2 * states.dtype.itemsize * rows * heads * keys * values,  # states in and out; the rest is small
        num_warps=config.num_warps, num_stages=config.num_stages, flops=8 * rows * heads * keys * values,
        SCALE=scale, HEADS=heads, K=keys, V=values, BV=block, RANK_ONE=a is not None,
    )  # fmt: skip
    return o, after


def _forward(token, place, states, scale, dtype, device, interpret):
    return _step(token, place, states, scale, dtype, device, interpret), (token, place, states)


def _backward(scale, dtype, device, interpret, residuals, cotangents):
    token, place, states = residuals
    pull = jax.vjp(functools.partial(_plain, place=place, scale=scale, dtype=dtype), token, states)[1]
    dtoken, dstates = pull(cotangents)
    return dtoken, None, dstates


_step.defvjp(_forward, _backward)


def _plain(token, states, place, scale, dtype):
    """The same in JAX, for gradients: whoever asks for them keeps all states anyway."""
    r, q, k, v, kept, a, b = token
    flat = states.reshape(-1, *states.shape[-3:])
    place = jnp.where(place < 0, flat.shape[0], place)
    state = flat.at[place].get(mode="fill", fill_value=0)
    state = state.astype(jnp.promote_types(state.dtype, jnp.float32))
    reads = lambda x: jnp.einsum("nhk,nhkv->nhv", x, state)  # noqa: E731
    o = reads(r) + jnp.sum(q * k, -1, keepdims=True) * v
    after = kept[..., None] * state + k[..., None] * v[..., None, :]
    if a is not None:
        u = reads(a)
        o, after = o + jnp.sum(q * b, -1, keepdims=True) * u, after + b[..., None] * u[..., None, :]
    return (scale * o).astype(dtype), flat.at[place].set(after.astype(flat.dtype), mode="drop").reshape(states.shape)
