"""Grouped matrix products on a TPU, in Pallas's interpreter, against a loop over groups in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from support.compare import assert_close
from support.groups import loop

from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry
from pallas_kernels.tpu import calls, grouped_matmul

ROWS, INPUTS, WIDTHS, GROUPS = 88, 24, (256, 3), 4
NAMES = tuple(grouped_matmul.CONFIGS)
SPLITS = {  # tiles have 16 rows, the last one 8
    "uneven": (30, 1, 7, 50),
    "empty groups, tiles' ends": (0, 32, 0, 48),
    "rows behind": (5, 0, 40, 0),
    "nothing": (0, 0, 0, 0),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that several groups meet in."""
    monkeypatch.setattr(grouped_matmul, "CONFIGS", {name: [Entry(Config(block_m=16))] for name in NAMES})


def example(split, dtype, inputs=INPUTS):
    """x, weights and cotangents; those of rows behind the groups are any."""
    rng = np.random.default_rng(len(split))
    shapes = [(ROWS, inputs), *((GROUPS, inputs, n) for n in WIDTHS), *((ROWS, n) for n in WIDTHS)]
    x, *rest = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return x, tuple(rest[: len(WIDTHS)]), tuple(rest[len(WIDTHS) :])


def differentiated(sizes, x, weights, dys):
    """ys, dx and dWs; memory is NaN until a kernel writes it."""
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    run = lambda x, w: grouped_matmul.grouped_matmul(x, w, sizes, 1, interpret=interpret)  # noqa: E731
    ys, pull = jax.vjp(run, x, weights)
    return ys, *pull(dys)


@pytest.fixture(scope="module")
def program():
    """One program for every split, which is data."""
    return jax.jit(differentiated)


@pytest.mark.parametrize("split", SPLITS)
def test_float32(program, split):
    """Values and all gradients; the gradient of an empty group's weights is 0."""
    x, weights, dys = example(split, jnp.float32)
    got = program(jnp.array(SPLITS[split]), x, weights, dys)
    assert_close(got, loop(x, weights, SPLITS[split], dys), 1e-5)


def test_blocks_of_columns_in_half_precision(monkeypatch):
    """Weights that VMEM does not hold together have a launch each, a wide one in blocks; rounded once for each."""
    too_much = lambda name, x, weights, blocks: 1 << (40 if weights[0].shape[2] > 128 * blocks else 10)  # noqa: E731
    monkeypatch.setattr(grouped_matmul, "_vmem", too_much)
    x, weights, dys = example("uneven", jnp.bfloat16, inputs=256)
    assert {grouped_matmul._Plan.make(name, x, weights[:1]).blocks for name in NAMES} == {2}
    got = jax.jit(differentiated)(jnp.array(SPLITS["uneven"]), x, weights, dys)
    assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, loop(x, weights, SPLITS["uneven"], dys), 2**-7)


def test_refuses(monkeypatch):
    """Other dtypes, weights that do not fit, and what no VMEM holds."""
    x, weights, _ = example("uneven", jnp.float32)
    sizes = jnp.zeros(GROUPS, jnp.int32)
    with pytest.raises(Unsupported, match="weight is bfloat16: the TPU kernels take float32 here, as x is"):
        grouped_matmul.grouped_matmul(x, (weights[0].astype(jnp.bfloat16),), sizes, 1)
    with pytest.raises(ValueError, match=r"weight \(4, 24, 256\) does not fit \(3,\) groups"):
        grouped_matmul.grouped_matmul(x, weights, sizes[1:], 1)
    monkeypatch.setattr(calls, "device", lambda: calls.Device("v5e", 1 << 10))
    with pytest.raises(Unsupported, match=r"weights 24 x 256 need .* MiB of VMEM"):
        grouped_matmul.grouped_matmul(x, weights, sizes, 1)
