"""What cannot be launched is refused while tracing, so that ``auto`` takes XLA."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.gpu.delta_rule import delta_rule
from pallas_kernels.gpu.grouped_matmul import grouped_matmul
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
