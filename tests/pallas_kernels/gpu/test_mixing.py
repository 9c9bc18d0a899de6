"""Reads mixed by Triton kernels, in Triton's interpreter, against the form in JAX's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.segments import plan_packing, unpack_mix
from pallas_kernels.gpu.mixing import mix


def example(shape, top_k, width, dtype, masked):
    """Rows, weights, the packing, and a cotangent."""
    rng = np.random.default_rng(sum(shape))
    memories = np.argsort(rng.random((*shape, 4)), -1)[..., :top_k].astype(np.int32)
    mask = jnp.asarray(rng.integers(0, 2, shape)) if masked else None
    packing = plan_packing(jnp.asarray(memories), 4, shared=True, chunk_size=4, attention_mask=mask)
    y = jnp.asarray(rng.normal(size=(packing.assignment.shape[0], width)), dtype)
    weights = jnp.asarray(rng.random((*shape, top_k)), jnp.float32)
    return y, weights, packing, jnp.asarray(rng.normal(size=(*shape, width)), dtype)


def by_kernel(y, weights, packing):
    """As `by_xla`."""
    flat = (x.reshape(-1, x.shape[-1]) for x in (weights, packing.row))
    return mix(y, *flat, packing.assignment, interpret=True).reshape(*weights.shape[:2], -1)


def by_xla(y, weights, packing):
    """The shared memory's row, the last of a token, counts whole."""
    return unpack_mix(y, jnp.concatenate([weights, jnp.ones_like(weights[..., :1])], -1), packing)


@pytest.mark.parametrize(
    ("shape", "top_k", "width", "dtype", "masked"),
    [
        ((2, 13), 2, 48, jnp.float32, True),
        ((3, 5), 1, 1100, jnp.float32, False),  # more channels than a block, and no whole number of blocks
        ((2, 9), 3, 64, jnp.float16, True),
    ],
)
def test_values_and_gradients(shape, top_k, width, dtype, masked):
    """Of rows and weights; masked tokens read 0, padding rows get 0."""
    y, weights, packing, do = example(shape, top_k, width, dtype, masked)

    def both(form):
        def run(y, weights, do):
            o, pull = jax.vjp(lambda y, w: form(y, w, packing), y, weights)
            return o, *pull(do)

        return jax.jit(run)(y, weights, do)

    got, want = both(by_kernel), both(by_xla)
    assert_close(got, want, 1e-6 if dtype == jnp.float32 else 2**-10)
    assert not np.any(np.asarray(got[1])[~np.asarray(packing.valid)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.zeros((6, 2), jnp.bfloat16)}, "weights is bfloat16: the GPU kernels take float32"),
        ({"row": jnp.zeros((6, 1), jnp.int32)}, r"row \(6, 1\), assignment \(12,\) do not fit"),
        ({"y": jnp.zeros((12, 8), jnp.int8)}, "dtype=int8: the GPU kernels take"),
    ],
)
def test_refuses(change, message):
    """Bad arguments are named in one line."""
    given = {"y": jnp.zeros((12, 8)), "weights": jnp.zeros((6, 2)), "row": jnp.zeros((6, 2), jnp.int32)}
    with pytest.raises(ValueError, match=message):
        mix(**(given | {"assignment": jnp.zeros(12, jnp.int32)} | change))
