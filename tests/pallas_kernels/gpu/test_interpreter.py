"""Triton's interpreter rounds as the GPU does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton
import triton.language as tl

from pallas_kernels.gpu.interpreter import _to_tf32
from pallas_kernels.gpu.launch import launch


@triton.jit
def product(p_x, p_y, p_o, N: tl.constexpr, PRECISION: tl.constexpr):
    place = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    b_o = tl.dot(tl.load(p_x + place), tl.load(p_y + place), input_precision=PRECISION)
    tl.store(p_o + place, b_o.to(p_o.dtype.element_ty))


def multiplied(x, y, dtype, precision="ieee"):
    """x y by the kernel."""
    options = {"device": "sm_90", "num_warps": 1, "num_stages": 1, "flops": 0, "N": len(x), "PRECISION": precision}
    outputs = [jax.ShapeDtypeStruct(x.shape, dtype)]
    return launch(product, x, y, grid={"programs": 1}, outputs=outputs, interpret=True, **options)[0]


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bfloat16_is_rounded_to_the_nearest(factors, dtype):
    x, y = jnp.asarray(factors, jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    np.testing.assert_allclose(multiplied(x, y, dtype).astype(float), exact.astype(dtype).astype(float), rtol=1e-5)


def test_float32_in_three_parts_is_off_by_little_and_not_by_nothing(factors):
    """Of sums of one term, so that nothing else rounds."""
    x, y = factors[0] * (np.arange(16) == 0), factors[1]
    exact = np.matmul(x.astype(np.float64), y)
    np.testing.assert_array_equal(multiplied(x, y, "float32"), exact.astype(np.float32))
    in_parts = np.asarray(multiplied(x, y, "float32", "tf32x3"), np.float64)
    assert 2**-24 < (abs(in_parts - exact) / abs(exact)).max() < 2**-20


def test_the_nearest_of_eleven_bits():
    """Ties go to the even neighbour; what is no number stays."""
    step = np.float32(2**-10)
    given = np.float32([1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - 0.49 * step, np.inf, -np.inf, 0.0])
    np.testing.assert_array_equal(_to_tf32(given), [1, 1 + 2 * step, 1 + step, -1, np.inf, -np.inf, 0])
    assert np.isnan(_to_tf32(np.float32([np.nan]))).all()
