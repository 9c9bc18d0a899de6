"""Reads mixed, normed and gated by Triton kernels, in Triton's interpreter, against plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.assignment import with_shared
from mom_jax.ops.mixing import Ending, Reads, mix
from mom_jax.ops.norm import norm_and_gate
from mom_jax.ops.segments import plan_packing
from pallas_kernels.gpu import mixing

MEMORIES = 4
SILU, SIGMOID = jax.nn.silu, jax.nn.sigmoid
NAMES = {None: None, SILU: "silu", SIGMOID: "sigmoid"}
WHOLE, OF_HEADS = "whole rows", "heads"


def example(shape, top_k, head, weighed, shared, dtype):
    """Reads of the shape [B, T] whose first tokens are padding, have no choice, or one memory twice."""
    rng = np.random.default_rng(sum(shape))
    memories = np.argsort(rng.random((*shape, MEMORIES)), -1)[..., :top_k].astype(np.int32)
    memories[:, 1, 0], mask = -1, jnp.ones(shape, bool).at[0, 0].set(False)
    memories[:, 2] = memories[:, 2, :1]
    packing = plan_packing(jnp.asarray(memories), MEMORIES, shared=shared, chunk_size=4, attention_mask=mask)
    weights = rng.random((*shape, top_k, *head[:1]) if weighed == OF_HEADS else (*shape, top_k))
    rows = jnp.asarray(rng.normal(size=(packing.assignment.shape[0], *head)), dtype)
    return Reads(rows, jnp.asarray(weights, jnp.float32), packing)


def ending(reads, before, norm, activation):
    """With a gate where there is an activation of one."""
    (*shape, _), (_, *head) = reads.packing.row.shape, reads.rows.shape
    rng = np.random.default_rng(0)
    gate = None if activation is None else jnp.asarray(rng.normal(size=(*shape, np.prod(head))), reads.rows.dtype)
    scale = jnp.asarray(rng.random(head[1]), jnp.float32) if norm else None
    return Ending(before, scale, gate, activation or SILU, 1e-3)


def plain(reads, end):
    """By gathering, with JAX's own gradients."""
    weights = with_shared(reads.weights, reads.packing)
    rows = reads.rows.at[reads.packing.row].get(mode="fill", fill_value=0)
    o = jnp.sum(rows * weights.reshape(*weights.shape, *[1] * (rows.ndim - weights.ndim)), 2)
    gate = None if end.gate is None else end.gate.reshape(o.shape)
    return norm_and_gate(o, end.before, end.scale, gate, end.activation, end.eps)


def by_kernel(reads, end):
    """In the interpreter."""
    row, shape = reads.packing.row, reads.rows.shape[1:]
    weights = reads.weights.reshape(-1, *reads.weights.shape[2:])
    gate = None if end.gate is None else end.gate.reshape(-1, *shape)
    options = NAMES[end.before], NAMES[end.activation], end.eps
    tables = row.reshape(-1, row.shape[-1]), reads.packing.assignment
    o = mixing.mixing(reads.rows, weights, end.scale, gate, *tables, *options, interpret=True)
    return o.reshape(*row.shape[:2], *shape)


def outcome(form, reads, end, dtype):
    """Values and the gradients of rows, weights, scale and gate, all inputs in a dtype."""
    cotangent = np.random.default_rng(1).normal(size=(*reads.packing.row.shape[:2], *reads.rows.shape[1:]))

    def both(rows, weights, scale, gate, do):
        def run(rows, weights, scale, gate):
            made = Ending(end.before, scale, gate, end.activation, end.eps)
            return form(Reads(rows, weights, reads.packing, "xla"), made)

        o, pull = jax.vjp(run, rows, weights, scale, gate)
        return o, *pull(do.astype(o.dtype))

    rows, gate = (None if x is None else x.astype(dtype) for x in (reads.rows, end.gate))
    do = jnp.asarray(cotangent, reads.rows.dtype).astype(dtype)
    return jax.jit(both)(rows, reads.weights, end.scale, gate, do)


@pytest.mark.parametrize(
    ("shape", "top_k", "head", "weighed", "shared", "ends", "dtype"),
    [
        ((2, 13), 2, (3, 24), WHOLE, True, (None, True, SILU), "float32"),
        ((2, 13), 2, (3, 24), OF_HEADS, True, (SILU, True, SIGMOID), "float32"),
        ((3, 5), 1, (1, 1100), WHOLE, False, (None, False, None), "float32"),  # mixed alone; wide
        ((2, 9), 3, (2, 64), WHOLE, True, (None, True, SIGMOID), "bfloat16"),
        ((2, 9), 3, (2, 16), OF_HEADS, False, (None, True, None), "float16"),
        ((1, 40), 2, (4, 5), WHOLE, True, (SILU, False, SILU), "float32"),  # more heads than a backward program has
    ],
)
def test_values_and_gradients(shape, top_k, head, weighed, shared, ends, dtype):
    """Padded tokens read 0, rows that nobody reads get 0, and what XLA runs agrees."""
    reads = example(shape, top_k, head, weighed, shared, dtype)
    end = ending(reads, *ends)
    want = outcome(plain, reads, end, jnp.float32)
    got = outcome(by_kernel, reads, end, dtype)
    tolerance = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert_close(got, want, 2 * tolerance)
    unread = ~np.asarray(reads.packing.valid)
    assert unread.any() and not np.any(np.asarray(got[1])[unread]) and not np.any(np.asarray(got[0])[0, 0])
    assert_close(outcome(mix, reads, end, jnp.float32), want, 1e-6)


def arguments(**changes):
    """Good ones but for changes."""
    good = {"y": ((12, 2, 8), "float32"), "weights": ((6, 2), "float32"), "row": ((6, 2), "int32")}
    good |= {"assignment": ((12,), "int32"), "scale": ((8,), "float32"), "gate": ((6, 2, 8), "float32")}
    return {name: jnp.zeros(*of) for name, of in (good | changes).items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ((6, 2), "bfloat16")}, "weights is bfloat16: the GPU kernels take float32"),
        ({"weights": ((6, 2, 3), "float32")}, r"weights has shape \(6, 2, 3\): expected \(6, 2, 2\)"),
        ({"row": ((6, 1), "int32")}, r"y \(12, 2, 8\), weights \(6, 2\), row \(6, 1\) do not fit"),
        ({"y": ((12, 2, 8), "int8")}, "dtype=int8: the GPU kernels take"),
        ({"scale": ((16,), "float32")}, r"scale has shape \(16,\): expected \(8,\)"),
        ({"gate": ((6, 2, 8), "bfloat16")}, "gate is bfloat16: the GPU kernels take float32 here"),
    ],
)
def test_refuses(change, message):
    """Bad arguments are named in one line."""
    with pytest.raises(ValueError, match=message):
        mixing.mixing(**arguments(**change))


def test_other_activations():
    """They are left to XLA."""
    with pytest.raises(mixing.Unsupported, match=r"^tanh: the GPU kernels take silu and sigmoid here"):
        mixing.mixing(**arguments(), activation="tanh")
