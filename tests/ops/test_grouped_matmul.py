"""Grouped matrix products against a loop over groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.groups import loop

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


def example(case, dtype):
    """x (0 beyond the groups), weights of two widths, sizes and the outputs' cotangents."""
    sizes, rows, inputs, outputs = CASES[case]
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, inputs))
    dys = [rng.normal(size=(rows, width)) for width in (outputs, 2)]
    for a in (x, *dys):
        a[sum(sizes) :] = 0
    weights = [rng.normal(size=(len(sizes), inputs, width)) for width in (outputs, 2)]
    cast = lambda arrays: tuple(jnp.asarray(a, dtype) for a in arrays)  # noqa: E731
    return jnp.asarray(x, dtype), cast(weights), jnp.array(sizes, jnp.int32), cast(dys)


@jax.jit
def differentiate(x, weights, sizes, dys):
    """ys, dx, dWs."""
    ys, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, tile=1), x, weights)
    return ys, *pull(dys)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    """Values and both gradients."""
    x, weights, sizes, dys = example(case, jnp.float32)
    assert_close(differentiate(x, weights, sizes, dys), loop(x, weights, CASES[case][0], dys), 1e-5)


@pytest.mark.parametrize("case", ["empty groups", "long groups"])
def test_bfloat16(case):
    """Sums in float32: one rounding of the result (2^-8 of the largest value)."""
    x, weights, sizes, dys = example(case, jnp.bfloat16)
    got = differentiate(x, weights, sizes, dys)
    assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, loop(x, weights, CASES[case][0], dys), 2**-8)


def test_the_split_is_data():
    """One compiled program serves every split of the rows."""
    x, weights, _, dys = example("all in one", jnp.float32)
    for sizes in ((40, 0, 0), (13, 14, 13), (1, 0, 39)):
        assert_close(differentiate(x, weights, jnp.array(sizes), dys), loop(x, weights, sizes, dys), 1e-5)
