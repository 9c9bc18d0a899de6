"""The gated delta rule in Triton, interpreted on the host, against a float64 loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.delta_rule import CASES, NAMES, case, cotangents_of, example, expected, with_gradients
from support.packed import Layout

from mom_jax.ops.dispatch import as_chunks
from pallas_kernels.gpu.delta_rule import delta_rule, supported

TOLERANCE = 1e-5  # of the largest value of each array, in float32
HALF = 2e-3  # of the same inputs in float32; float16 has 11 bits, bfloat16 with 8 is eight times as far
SIZES = (1, 16, 16)


def rule(layout, resets, inputs):
    """Outputs of the tokens and final states."""
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    chunks, scale = as_chunks(layout.table(resets)), q.shape[-1] ** -0.5
    o, final = delta_rule(q, k, v, g, beta, chunks, inputs.get("state"), scale, interpret=True)
    return o[layout.index], final


@functools.cache
def compiled(lengths, chunk, resets):
    """One program for all inputs of a shape."""
    return jax.jit(functools.partial(with_gradients, functools.partial(rule, Layout(lengths, chunk), resets)))


def measured(inputs, lengths, chunk, resets=()):
    """Outputs, final states and gradients."""
    return compiled(tuple(lengths), chunk, tuple(resets) or None)(inputs, cotangents_of(inputs))


@pytest.mark.parametrize("name", CASES)
def test_values_states_and_gradients(name):
    """Everything within 1e-5 of the float64 loop, over empty and one-token segments, documents and extremes."""
    inputs, lengths, resets, want = case(name, SIZES)
    got = measured(inputs, lengths, 16, resets)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    if name in ("ragged", "documents"):
        np.testing.assert_array_equal(got[0][1][1], inputs["state"][1])  # an empty segment keeps its state
        np.testing.assert_array_equal(got[1]["state"][1], cotangents_of(inputs)[1][1])  # and passes its gradient on
    # gradients of gates that decay to 0 are 0 in theory
    assert_close(got, want, TOLERANCE, atol=1e-6 if name.startswith("total decay") else 0)


@pytest.mark.parametrize(
    "lengths, chunk, sizes, resets",
    [((70, 0, 50), 64, (2, 64, 128), (100,)), ((20,), 32, (1, 128, 64), ()), ((20,), 16, (1, 256, 512), ())],
)
def test_sizes_of_the_models(lengths, chunk, sizes, resets):
    """Long chunks, lengths that are no multiple of them, documents inside, wide keys and wider values."""
    inputs = example(sum(lengths), len(lengths), sizes)
    assert_close(measured(inputs, lengths, chunk, resets), expected(inputs, lengths, resets), TOLERANCE)


def test_float16():
    """Half-precision rows: outputs and gradients in their dtype, states float32, all near those in float32."""
    lengths = (70, 5)
    inputs = example(75, 2, (1, 64, 64))
    half = {name: x.astype(jnp.float16) if name in "qkv" else x for name, x in inputs.items()}
    do, dfinal = cotangents_of(inputs)
    got = compiled(lengths, 64, None)(half, (do.astype(jnp.float16), dfinal))
    want = expected({name: x.astype(jnp.float32) for name, x in half.items()}, lengths, ())
    assert {name: x.dtype for name, x in got[1].items()} == {name: x.dtype for name, x in half.items()}
    assert got[0][0].dtype == jnp.float16 and got[0][1].dtype == jnp.float32
    assert_close(got, want, HALF)


def test_no_state_is_a_state_of_zeros():
    """Without an initial state segments begin empty and no state returns; unused chunks give 0 everywhere."""
    layout, resets, inputs = Layout((17, 0, 9), 16, spare_chunks=2), (20,), example(26, 3, SIZES)
    packed = {name: layout.pack(inputs[name]) for name in NAMES[:-1]}
    cotangent = jnp.ones_like(packed["v"])
    chunks = as_chunks(layout.table(resets))

    def outputs(state, x):
        o, final = delta_rule(*(x[name] for name in NAMES[:-1]), chunks, state, 0.25, interpret=True)
        assert (final is None) == (state is None)
        return o

    run = lambda state: jax.jit(lambda x: with_gradients(functools.partial(outputs, state), x, cotangent))(packed)  # noqa: E731
    got = run(None)
    assert_close(got, run(jnp.zeros_like(inputs["state"])), 1e-6)
    assert all(not np.any(np.asarray(x)[-2 * layout.chunk :]) for x in jax.tree.leaves(got))


def test_nothing_but_unused_chunks():
    """Segments without rows keep their states and pass their gradients on."""
    inputs = example(0, 2, SIZES)
    (_, final), gradients = measured(inputs, (0, 0), 16)
    np.testing.assert_array_equal(final, inputs["state"])
    np.testing.assert_array_equal(gradients["state"], cotangents_of(inputs)[1])


def test_what_has_no_kernel():
    """One line names the argument, its value and what to pass instead."""
    shape, wide = (64, 2, 64), (64, 2, 256)
    assert supported(shape, shape, wide, "bfloat16", 64) is None
    assert "K: 96 key channels" in str(supported((64, 2, 96), (64, 2, 96), wide, "bfloat16", 64))
    assert "V: 1024 value channels" in str(supported(shape, shape, (64, 2, 1024), "bfloat16", 64))
    assert "dtype: int8" in str(supported(shape, shape, shape, "int8", 64))
    assert "chunk size: 128 rows" in str(supported(shape, shape, shape, "float32", 128))
    assert "do not fit" in str(supported(shape, wide, shape, "float32", 64))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"g": jnp.zeros((16, 1), jnp.bfloat16)}, "g: bfloat16[16, 1] does not fit: pass float32[16, 1]"),
        ({"v": jnp.zeros((16, 1, 16), jnp.bfloat16)}, "q, k, v: dtypes float32, float32, bfloat16 differ"),
        ({"state": jnp.zeros((2, 1, 16, 8))}, "initial_state: float32[2, 1, 16, 8] does not fit: pass float32[S, 1, 1"),
        ({"device": "sm_70"}, "device: sm_70 has no kernels"),
        ({"segment": jnp.zeros(3, jnp.int32)}, "chunks: 3 chunks do not divide 16 rows"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """`ValueError` with one line."""
    layout, inputs = Layout((16,), 16, spare_chunks=0), example(16, 1, SIZES) | change
    segment, device = inputs.pop("segment", None), inputs.pop("device", "sm_90")
    chunks = as_chunks(layout.table())
    chunks = chunks if segment is None else chunks._replace(segment=segment)
    with pytest.raises(ValueError, match=re.escape(message)):
        delta_rule(*(inputs[name] for name in NAMES[:-1]), chunks, inputs["state"], 1.0, device=device)
