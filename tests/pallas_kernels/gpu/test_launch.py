"""What cannot be launched is refused while tracing, so that ``auto`` takes XLA; what is not there has a pointer."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.gpu.delta_rule import delta_rule
from pallas_kernels.gpu.grouped_matmul import grouped_matmul
from pallas_kernels.gpu.launch import launch
from pallas_kernels.gpu.scalar_decay import scalar_decay

LONG = 2**16


def shape(*sizes, dtype="float32"):
    """An array that is nowhere."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def recur(operator, chunks=2, heads=1, segments=1, gates=1):
    """The trace of an operator of K = V = 16 with a gradient."""
    rows, gate = shape(16 * chunks, heads, 16), shape(16 * chunks, heads)
    flags, runs = shape(chunks, dtype="bool"), shape(segments + 1, 3, dtype="int32")
    table = Chunks(shape(chunks, dtype="int32"), flags, flags, runs, None)

    def run(q, k, v, gates, table):
        return operator(q, k, v, *gates, table, None, 1.0, interpret=True)[0]

    return jax.eval_shape(run, rows, rows, rows, (gate,) * gates, table)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"heads": LONG}, "heads=65536"),
        ({"segments": LONG}, "segments=65537"),  # the unused chunks are one more
    ],
)
def test_a_grid_that_is_too_long(sizes, message):
    """What is too many is named; one less is not."""
    with pytest.raises(Unsupported, match=rf"^{message}: the GPU kernels run 65535 at most"):
        recur(delta_rule, gates=2, **sizes)
    fits = {name: n - 2 for name, n in sizes.items()}
    assert recur(delta_rule, gates=2, **fits).dtype == jnp.float32


def test_the_axis_that_may_be_long():
    """Chunks lie along the first axis; decays run all blocks there, groups of a product lie along another."""
    assert recur(delta_rule, chunks=LONG, gates=2).shape == (16 * LONG, 1, 16)
    assert recur(scalar_decay, chunks=LONG, segments=LONG).shape == (16 * LONG, 1, 16)
    x, weight = shape(16, 16), shape(LONG, 16, 16)

    def gradient(x, weight, sizes):
        return jax.grad(lambda weight: grouped_matmul(x, (weight,), sizes, 16, interpret=True)[0].sum())(weight)

    with pytest.raises(Unsupported, match=r"^groups=65536: the GPU kernels run 65535 at most"):
        jax.eval_shape(gradient, x, weight, shape(LONG, dtype="int32"))


def test_inputs_and_outputs_that_are_not_there():
    """The smallest input stands in, but never one that is changed in place; what is not asked for is None."""
    pointers = []

    class Kernel:
        """Tells what it gets."""

        def __getitem__(self, grid):
            return lambda *given: pointers.extend(x.array.shape for x in given)

    state, inputs = jnp.ones(1), (None, jnp.ones(8), jnp.ones(4))
    made = launch(
        Kernel(), state, *inputs, grid={"programs": 1}, outputs=[shape(1), None, shape(2)], aliases={0: 0},
        interpret=True, device="sm_90", num_warps=1, num_stages=1, flops=0,
    )  # fmt: skip
    assert [None if x is None else x.shape for x in jax.block_until_ready(made)] == [(1,), None, (2,)]
    assert pointers == [(1,), (4,), (8,), (4,), (1,), (2,)]
