"""The kernels of every recurrence, interpreted on the host: at the sizes of models, and in half precision."""

import jax
import jax.numpy as jnp
import pytest
from support.cases import some
from support.compile import optimised
from support.kernels import KERNELS, PLATFORMS, compare, example
from support.packed import Layout
from support.recurrences import EXTREMES

# (platform, recurrence, tokens, rows of a chunk, K and V): every kernel with more than one block of keys or values.
SIZES = [
    ("tpu", "delta rule", 20, 32, (256, 512)),
    ("tpu", "no decay", 20, 32, (128, 256)),
    ("tpu", "vector decay", 20, 32, (128, 64)),
    ("tpu", "rwkv7", 20, 32, (128, 64)),
    ("gpu", "delta rule", 20, 32, (256, 128)),
    ("gpu", "scalar decay", 20, 32, (256, 64)),
    ("gpu", "vector decay, bonus", 20, 32, (128, 64)),
    ("gpu", "kda", 20, 32, (128, 128)),
    ("tpu", "delta rule", 140, 128, (64, 128)),
    ("gpu", "delta rule", 70, 64, (64, 128)),
]
# without a product that decides what is written, and with one; with a decay
FIRST = [SIZES[1], *SIZES[4:6]]


@pytest.mark.parametrize(
    "platform, name, tokens, chunk, sizes",
    some(SIZES, FIRST),
    ids=["-".join(map(str, (*x[:2], x[3], *x[4]))) for x in SIZES],
)
def test_sizes_of_models(platform, name, tokens, chunk, sizes):
    """Long chunks, lengths that are no multiple of them, wide keys and wider values; a document inside.

    In one chunk without an initial state: segments begin empty, none returns, and unused chunks disturb nothing.
    """
    layout, one = Layout((tokens, 0), chunk), tokens < chunk
    inputs = example(name, layout, sizes)
    jit = optimised if (platform, name) == ("tpu", "delta rule") else jax.jit  # its loops run longer than they compile
    (_, final), _ = compare(platform, name, inputs._replace(state=None) if one else inputs, layout, (13,), jit=jit)
    assert (final is None) == one


def test_gates_in_long_chunks():
    """Log gates of -1e4 among weak ones: pairs of rows near each other and far apart are cut in different ways."""
    layout, total = Layout((70, 0), 64), EXTREMES["total among weak"]
    compare("gpu", "rwkv7", example("rwkv7", layout, (16, 16), g=total), layout, (13,), atol=1e-6)


HALF = {"bfloat16": 2**-6, "float16": 2e-3}
HALVES = [*((*case, "bfloat16") for case in KERNELS), ("gpu", "delta rule", "float16")]
HALVES_FIRST = [case for case in HALVES if case[:2] == ("gpu", "delta rule")]


@pytest.mark.parametrize("platform, name, dtype", some(HALVES, HALVES_FIRST))
def test_half_precision(platform, name, dtype):
    """Outputs and gradients in their dtypes, float32 states, all near those of the same rows in float64.

    Memory that no kernel has written is NaN here: states of empty segments, scratch, unused chunks.
    """
    layout, (smallest, unwritten, _) = Layout((40, 0, 5, 0), 32), PLATFORMS[platform]
    inputs = example(name, layout, smallest)
    half = {n: getattr(inputs.rows, n).astype(jnp.dtype(dtype)) for n in "qkv"}
    rounded = inputs._replace(rows=inputs.rows._replace(**half))
    (o, final), gradients = compare(platform, name, rounded, layout, None, tolerance=HALF[dtype], interpret=unwritten)
    assert o.dtype == dtype and final.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, rounded)
