"""Grouped matrix products as Triton kernels, in Triton's interpreter, against a loop over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from pallas_kernels.gpu.grouped_matmul import grouped_matmul

CASES = {  # sizes, rows, D, F, tile
    "even": ((32, 32, 32), 96, 64, 48, 16),
    "empty groups": ((0, 48, 0, 16, 0), 64, 16, 40, 16),
    "all in one": ((0, 0, 160), 160, 20, 6, 32),
    "rows beyond": ((64, 192), 448, 64, 65, 64),
    "nothing": ((0, 0), 32, 16, 16, 16),
    "wide": ((128, 0, 256), 384, 100, 300, 128),
}


def loop(x, weight, dy, sizes):
    """y, dx and dW in float64."""
    x, weight, dy = (np.asarray(a, np.float64) for a in (x, weight, dy))
    y, dx, dw, begin = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(weight), 0
    for group, size in enumerate(sizes):
        rows = slice(begin, begin + size)
        y[rows], dx[rows], dw[group] = x[rows] @ weight[group], dy[rows] @ weight[group].T, x[rows].T @ dy[rows]
        begin += size
    return y, dx, dw


def example(case, dtype):
    """x (0 beyond the groups), weight and the output's cotangent."""
    sizes, rows, inputs, outputs, _ = CASES[case]
    rng = np.random.default_rng(rows)
    x, dy = rng.normal(size=(rows, inputs)), rng.normal(size=(rows, outputs))
    x[sum(sizes) :] = 0
    weight = rng.normal(size=(len(sizes), inputs, outputs))
    return tuple(jnp.asarray(a, dtype) for a in (x, weight, dy))


@functools.partial(jax.jit, static_argnums=4)
def differentiate(x, weight, dy, sizes, tile):
    """y, dx, dW."""
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, (w,), sizes, tile, interpret=True)[0], x, weight)
    return y, *pull(dy)


def measured(case, dtype):
    """What the kernels give, and the loop."""
    sizes, *_, tile = CASES[case]
    x, weight, dy = example(case, dtype)
    return differentiate(x, weight, dy, jnp.array(sizes, jnp.int32), tile), loop(x, weight, dy, sizes)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    """Values and both gradients; the gradient of an empty group's weight is 0."""
    assert_close(*measured(case, jnp.float32), 1e-5)


@pytest.mark.parametrize("case", ["even", "rows beyond"])
def test_float16(case):
    """Sums in float32: one rounding of the result (2^-11 of the largest value)."""
    got, want = measured(case, jnp.float16)
    assert {a.dtype for a in got} == {jnp.dtype(jnp.float16)}
    assert_close(got, want, 2**-11)


def test_several_weights():
    """Narrow ones are multiplied together and wide ones alone; every result comes back in its place."""
    x, weight, _ = example("even", jnp.float32)
    sizes, widths = jnp.array((32, 32, 32)), (4, 70, 1, 64)
    weights = tuple(jnp.tile(weight, (1, 1, 2))[..., :n] * (i + 1) for i, n in enumerate(widths))
    got = jax.jit(lambda x, w: grouped_matmul(x, w, sizes, 16, interpret=True))(x, weights)
    want = [np.repeat(np.asarray(w), 32, 0) for w in weights]
    assert_close(got, tuple(np.einsum("nd,ndf->nf", x, w) for w in want), 1e-5)


def test_gradients_of_several_weights():
    """More than one launch takes: rows get the sum over all, every weight its own."""
    x, weight, _ = example("even", jnp.float32)
    sizes, widths = jnp.array((32, 32, 32)), (4, 64, 1, 70, 96, 64)
    weights = tuple(jnp.tile(weight, (1, 1, 2))[..., :n] * (i + 1) for i, n in enumerate(widths))

    def total(form):
        return lambda x, w: sum(((i + 1) * y**2).sum() for i, y in enumerate(form(x, w)))

    def plain(x, weights):
        return tuple(jnp.einsum("nd,ndf->nf", x, jnp.repeat(w, 32, 0)) for w in weights)

    kernels = functools.partial(grouped_matmul, group_sizes=sizes, tile=16, interpret=True)
    got, want = (jax.jit(jax.grad(total(form), (0, 1)))(x, weights) for form in (kernels, plain))
    assert_close(got, want, 1e-5)


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
    x, weight, dy = example("all in one", jnp.float32)
    for sizes in ((160, 0, 0), (32, 96, 32), (64, 0, 96)):
        assert_close(differentiate(x, weight, dy, jnp.array(sizes), 32), loop(x, weight, dy, sizes), 1e-5)


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
