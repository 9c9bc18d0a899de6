"""One token through the short convolution in place, in Triton's interpreter, against the convolution of whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.segments import plan_packing
from mom_jax.ops.short_conv import conv_state, short_conv
from pallas_kernels.chunks import Unsupported
from pallas_kernels.gpu.short_conv_step import short_conv_step

BATCH, MEMORIES, HEAD = 3, 4, 24


def example(taps, gathered, bias, documents, dtype):
    """Rows of three tokens, of which one is padding, and the states of all memories, two of which go on."""
    rng, channels = np.random.default_rng(taps), 2 * HEAD
    chosen = jnp.asarray(rng.permuted(np.tile(np.arange(MEMORIES - 1), (BATCH, 1)), axis=1)[:, None, :2], jnp.int32)
    mask = jnp.asarray([[1], [0], [1]])
    packing = plan_packing(chosen, MEMORIES - 1, shared=True, chunk_size=1, attention_mask=mask)
    reset = jnp.asarray(rng.random(packing.assignment.shape) < 0.5) & packing.valid if documents else None
    rows = (BATCH, 1, channels) if gathered else (packing.assignment.shape[0], channels)
    x = rng.normal(size=rows)
    x = x if gathered else np.where(packing.valid[:, None], x, 0)
    states = rng.normal(size=(MEMORIES * BATCH, taps - 1, channels))
    weight, offset = rng.normal(size=(channels, taps)), rng.normal(size=channels)
    arrays = jnp.asarray(x, dtype), jnp.asarray(weight, jnp.float32), jnp.asarray(states, dtype)
    return packing, reset, *arrays, jnp.asarray(offset, jnp.float32) if bias else None


def by_kernel(packing, reset, x, weight, states, bias, **form):
    """As a layer calls it."""
    table = packing.table
    place = jnp.where(table.segment < table.num_segments, table.segment, -1).astype(jnp.int32)
    token = packing.token if x.ndim == 3 else None
    form = form["activate"], form["head"], form["normalise"]
    flat = x.reshape(-1, x.shape[-1])
    y, after = short_conv_step(flat, weight, bias, states, token, place, reset, *form, interpret=True)
    return jnp.where(packing.valid[:, None], y, 0), after


def by_rows(packing, reset, x, weight, states, bias, **form):
    """States that a document's beginning clears, then the convolution of whole rows."""
    if reset is not None:
        states = states.at[jnp.where(reset, packing.table.segment, states.shape[0])].set(0, mode="drop")
    y = short_conv(x, weight, packing, states, bias, impl="xla", **form)
    return jnp.where(packing.valid[:, None], y, 0), conv_state(x, packing, states)


@pytest.mark.parametrize(
    ("taps", "gathered", "bias", "documents", "normalise", "dtype"),
    [
        pytest.param(4, True, False, True, True, jnp.float32, marks=pytest.mark.exhaustive),
        (2, False, True, False, False, jnp.float32),
        (3, False, False, True, True, jnp.bfloat16),
    ],
)
def test_values_and_gradients(taps, gathered, bias, documents, normalise, dtype):
    """Rows, and the states that they leave; states that no row names are untouched."""
    packing, reset, *arrays = example(taps, gathered, bias, documents, dtype)
    form = {"activate": normalise, "head": HEAD, "normalise": normalise}
    results = []
    for run in (by_kernel, by_rows):
        out, pull = jax.vjp(lambda *arrays, run=run: run(packing, reset, *arrays, **form), *arrays)
        cotangents = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape).astype(a.dtype), out)
        results.append((out, pull(cotangents)))
    assert_close(*results, 2**-6 if dtype == jnp.bfloat16 else 1e-5)


def test_sizes():
    """Filters are no longer than those of the convolution of whole rows."""
    with pytest.raises(Unsupported, match="taps=9: the GPU kernels take 2 to 8"):
        short_conv_step(
            jnp.zeros((1, 8)), jnp.zeros((8, 9)), None, jnp.zeros((1, 8, 8)), None, jnp.zeros(1, jnp.int32), None,
            True, None, False,
        )  # fmt: skip
