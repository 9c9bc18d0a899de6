"""Grouped matrix products as Triton kernels, in Triton's interpreter, against a loop over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.groups import loop

from pallas_kernels.gpu.grouped_matmul import grouped_matmul

CASES = {  # sizes, rows, D, each F, tile
    "even": ((32, 32, 32), 96, 64, (48,), 16),
    "empty groups": ((0, 48, 0, 16, 0), 64, 16, (40,), 16),
    "all in one": ((0, 0, 160), 160, 20, (6,), 32),
    "rows beyond": ((64, 192), 448, 64, (65,), 64),
    "nothing": ((0, 0), 32, 16, (16,), 16),
    "wide": ((128, 0, 256), 384, 100, (300,), 128),
    # narrow weights are multiplied together and wide ones alone; the last are more than one launch takes
    "several weights": ((32, 32, 32), 96, 64, (4, 70, 1, 64), 16),
    "many weights": ((32, 32, 32), 96, 64, (4, 64, 1, 70, 96, 64), 16),
    "narrow ones that are wide together": ((32, 32, 32), 96, 64, (64, 40, 70, 40), 16),
}


def example(case, dtype):
    """x (0 beyond the groups), weights and the outputs' cotangents."""
    sizes, rows, inputs, widths, _ = CASES[case]
    rng = np.random.default_rng(rows)
    x, *dys = (rng.normal(size=(rows, width)) for width in (inputs, *widths))
    x[sum(sizes) :] = 0
    weights = tuple(rng.normal(size=(len(sizes), inputs, width)) for width in widths)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (x, weights, tuple(dys)))


@functools.partial(jax.jit, static_argnums=4)
def differentiate(x, weights, dys, sizes, tile):
    """ys, dx, dWs."""
    ys, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, tile, interpret=True), x, weights)
    return ys, *pull(dys)


def measured(case, dtype):
    """What the kernels give, and the loop."""
    sizes, *_, tile = CASES[case]
    x, weights, dys = example(case, dtype)
    return differentiate(x, weights, dys, jnp.array(sizes, jnp.int32), tile), loop(x, weights, sizes, dys)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    """Values and both gradients, each in its place; that of an empty group's weight is 0."""
    assert_close(*measured(case, jnp.float32), 1e-5)


@pytest.mark.parametrize("case", ["even", "rows beyond"])
def test_float16(case):
    """Sums in float32: one rounding of the result (2^-11 of the largest value)."""
    got, want = measured(case, jnp.float16)
    assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float16)}
    assert_close(got, want, 2**-11)


@pytest.mark.parametrize("widths", [(64, 70, 8), (96,)])
def test_rows_that_are_copies_of_tokens(widths):
    """Gathered inside, padding rows are 0, and a token's gradient is the sum over its copies."""
    sizes, token = jnp.array((16, 0, 32)), np.full(64, 9, np.int32)
    token[:7], token[16:25], token[32:34] = [4, 8, 0, 1, 2, 3, 7], np.arange(9), [5, 6]
    copies = np.array([sorted(np.flatnonzero(token == t))[:2] for t in range(9)], np.int32)
    token[copies[3, 1]], copies[3, 1] = 9, 64  # one token has one copy
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(9, 40)), jnp.float32)
    weights = tuple(jnp.asarray(rng.normal(size=(3, 40, n)), jnp.float32) for n in widths)

    def both(form):
        def run(x, weights):
            ys, pull = jax.vjp(form, x, weights)
            return ys, pull(tuple(jnp.cos(y) for y in ys))

        return jax.jit(run)(x, weights)

    def gathering(x, weights):
        return grouped_matmul(x, weights, sizes, 16, jnp.asarray(token), jnp.asarray(copies), interpret=True)

    def packing(x, weights):
        return grouped_matmul(x.at[token].get(mode="fill", fill_value=0), weights, sizes, 16, interpret=True)

    assert_close(both(gathering), both(packing), 1e-6)


def test_the_split_is_data():
    """One compiled program serves every split of the rows."""
    x, weights, dys = example("all in one", jnp.float32)
    for sizes in ((160, 0, 0), (32, 96, 32), (64, 0, 96)):
        assert_close(differentiate(x, weights, dys, jnp.array(sizes), 32), loop(x, weights, sizes, dys), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 24}, "tile=24 is none of 16, 32, 64, 128"),
        ({"x": jnp.zeros((40, 8))}, r"x \(40, 8\) does not have a multiple of tile=16 rows"),
        ({"weights": (jnp.zeros((2, 9, 4)),)}, r"weight \(2, 9, 4\) does not fit"),
        ({"weights": (jnp.zeros((2, 8, 4), jnp.int8),)}, "weight is int8: the GPU kernels take"),
        ({"device": "sm_70"}, "device=sm_70: the GPU kernels take sm_80"),
    ],
)
def test_refuses(change, message):
    """Bad arguments are named in one line."""
    given = {"x": jnp.zeros((32, 8)), "weights": (jnp.zeros((2, 8, 4)),), "group_sizes": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ValueError, match=message):
        grouped_matmul(**(given | {"tile": 16} | change))
