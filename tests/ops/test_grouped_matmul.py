"""Grouped matrix products against a loop over groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.compiled import jit

from mom_jax.ops.grouped_matmul import grouped_matmul

CASES = {
    "even": ((8, 8, 8), 24, 5, 7),
    "empty groups": ((0, 12, 0, 4, 0), 16, 3, 2),
    "all in one": ((0, 0, 40), 40, 6, 6),
    "rows beyond": ((3, 9), 20, 4, 5),
    "nothing": ((0, 0), 8, 4, 5),
    "one row": ((1,), 1, 4, 5),
    "long groups": ((300, 5, 600), 1000, 8, 9),
}


def loop(x, weights, sizes, dy):
    """y, dx and dW in float64."""
    x, weights, dy = (np.asarray(a, np.float64) for a in (x, weights, dy))
    y, dx, dw, begin = np.zeros((len(x), weights.shape[2])), np.zeros_like(x), np.zeros_like(weights), 0
    for group, size in enumerate(sizes):
        rows = slice(begin, begin + size)
        y[rows], dx[rows], dw[group] = x[rows] @ weights[group], dy[rows] @ weights[group].T, x[rows].T @ dy[rows]
        begin += size
    return y, dx, dw


def example(case, dtype):
    """x (0 beyond the groups), weights, sizes and dy."""
    sizes, rows, inputs, outputs = CASES[case]
    rng = np.random.default_rng(rows)
    x, dy = rng.normal(size=(rows, inputs)), rng.normal(size=(rows, outputs))
    x[sum(sizes) :] = dy[sum(sizes) :] = 0
    weights = rng.normal(size=(len(sizes), inputs, outputs))
    return (*(jnp.asarray(a, dtype) for a in (x, weights)), jnp.array(sizes, jnp.int32), jnp.asarray(dy, dtype))


@jit
def differentiate(x, weights, sizes, dy):
    """y, dx, dW."""
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, weights)
    return y, *pull(dy)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    """Values and both gradients."""
    x, weights, sizes, dy = example(case, jnp.float32)
    assert_close(differentiate(x, weights, sizes, dy), loop(x, weights, CASES[case][0], dy), 1e-5)


@pytest.mark.parametrize("case", ["empty groups", "long groups"])
def test_bfloat16(case):
    """Sums in float32: one rounding of the result (2^-8 of the largest value)."""
    x, weights, sizes, dy = example(case, jnp.bfloat16)
    got = differentiate(x, weights, sizes, dy)
    assert {a.dtype for a in got} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, loop(x, weights, CASES[case][0], dy), 2**-8)


def test_the_split_is_data():
    """One compiled program serves every split of the rows."""
    x, weights, _, dy = example("all in one", jnp.float32)
    for sizes in ((40, 0, 0), (13, 14, 13), (1, 0, 39)):
        assert_close(differentiate(x, weights, jnp.array(sizes), dy), loop(x, weights, sizes, dy), 1e-5)
