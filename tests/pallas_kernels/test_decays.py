"""Kernels of recurrences with decay, interpreted on the host: values, states and gradients, token by token.

Outputs that no kernel wrote are NaN in both interpreters.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.compile import optimised
from support.packed import Layout
from support.primitives import PRIMITIVES
from support.recurrences import DOCUMENTS, EXTREMES, RAGGED, TOLERANCE, outputs, with_gradients

from mom_jax.ops.dispatch import as_chunks

NAMES = ("scalar decay", "no decay", "vector decay", "vector decay, bonus", "rwkv7")
KERNELS = [(platform, name) for name in NAMES for platform in PRIMITIVES[name].primitive.kernels]
SMALL = {"tpu": (64, 64), "gpu": (16, 16)}  # K and V
# bfloat16 has no interpreter in Triton; with 8 bits instead of 11 it is eight times as far off
HALVES = {"tpu": ("bfloat16", 2**-6), "gpu": ("float16", 2e-3)}


def run(platform, name, rows, shared, table, state):
    """The kernel of a platform, or the reference for None."""
    case = PRIMITIVES[name]
    packed, scale = case.packed(rows, shared), rows["q"].shape[-1] ** -0.5
    if platform is None:
        return case.primitive.scan(packed, table, state, scale)
    module, _, function = case.primitive.kernels[platform].partition(":")
    kernel = getattr(importlib.import_module(module), function)
    return kernel(*packed, as_chunks(table), state, scale, interpret=True)


def example(name, tokens, segments, sizes=(64, 64), gate=lambda g: g):
    """Random inputs."""
    case = PRIMITIVES[name]
    return case.example(tokens, segments, sizes, **dict.fromkeys(case.gates, gate))


def kimi(tokens, spread, gate, strength):
    """Kimi delta attention with keys of one direction, but for ``spread``, written at one strength."""

    def of_one_direction(k):
        k = 1 + spread * k
        return k / np.linalg.norm(k, axis=-1, keepdims=True)

    gates = {"g": lambda g: np.full_like(g, gate), "beta": lambda beta: np.full_like(beta, strength)}
    return PRIMITIVES["kda"].example(tokens, len(RAGGED), (64, 64), k=of_one_direction, **gates)


@functools.cache
def compiled(platform, name, layout, resets):
    """One program for all inputs of a shape."""
    function = functools.partial(outputs, functools.partial(run, platform, name), layout, resets)
    return optimised(functools.partial(with_gradients, function))


def compare(platform, name, inputs, layout, resets, tolerance=TOLERANCE, atol=0.0):
    """Outputs, final states and gradients of the kernel, which must be those of the reference."""
    got, want = (compiled(where, name, layout, resets)(inputs) for where in (platform, None))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(got, want, tolerance, atol)
    return got


@pytest.mark.parametrize("platform, name", KERNELS)
def test_kernels_equal_tokens(platform, name):
    """Empty, one-token and ragged segments with documents; then gates of -1e4 and 0, alone and among weak ones.

    Segments without rows keep their state and pass its gradient on. Gradients of gates that let
    nothing through are 0 in theory.
    """
    layout = Layout(RAGGED, 16)
    inputs = example(name, sum(RAGGED), len(RAGGED), SMALL[platform])
    (_, final), gradients = compare(platform, name, inputs, layout, DOCUMENTS)
    cotangent = np.random.default_rng(99)
    cotangent.normal(size=inputs["rows"]["v"].shape)
    np.testing.assert_array_equal(final[1], inputs["state"][1])
    expected = cotangent.normal(size=final.shape).astype(np.float32)
    np.testing.assert_array_equal(gradients["state"][1], expected[1])
    for extreme in EXTREMES.values() if name != "no decay" else ():
        inputs = example(name, sum(RAGGED), len(RAGGED), SMALL[platform], gate=extreme)
        compare(platform, name, inputs, layout, DOCUMENTS, atol=1e-6)


def test_kimi_with_keys_of_one_direction():
    """Near-duplicate keys, and equal ones at strength 2, where every token turns the state round."""
    layout = Layout(RAGGED, 16)
    compare("tpu", "kda", kimi(sum(RAGGED), spread=0.02, gate=-1e-3, strength=0.98), layout, DOCUMENTS)
    # what the equations of a chunk lose in float32 there: 2e-5
    turning = kimi(sum(RAGGED), spread=0.0, gate=-0.02, strength=2.0)
    compare("tpu", "kda", turning, layout, DOCUMENTS, tolerance=5e-5)


@pytest.mark.parametrize("platform, name", [("tpu", "scalar decay"), ("gpu", "scalar decay"), ("gpu", "vector decay")])
def test_no_state(platform, name):
    """Without an initial state segments begin empty, and none returns; unused chunks change no other row."""
    inputs = example(name, 26, 3, SMALL[platform]) | {"state": None}
    (_, final), _ = compare(platform, name, inputs, Layout((17, 0, 9), 16, spare_chunks=2), (20,))
    assert final is None


@pytest.mark.parametrize("platform", SMALL)
def test_nothing_but_unused_chunks(platform):
    """Segments without rows keep their states and pass their gradients on."""
    inputs = example("scalar decay", 0, 2, SMALL[platform])
    (_, final), _ = compare(platform, "scalar decay", inputs, Layout((0, 0), 16), None)
    np.testing.assert_array_equal(final, inputs["state"])


@pytest.mark.parametrize(
    "platform, name, lengths, chunk, sizes",
    [
        ("tpu", "no decay", (70,), 64, (256, 512)),
        ("tpu", "vector decay", (70,), 64, (128, 64)),
        ("gpu", "scalar decay", (70, 0), 64, (64, 128)),
        ("gpu", "vector decay", (70, 0), 64, (64, 128)),
        ("gpu", "scalar decay", (20,), 32, (256, 64)),
        ("gpu", "vector decay, bonus", (20,), 32, (128, 64)),
    ],
)
def test_sizes_of_models(platform, name, lengths, chunk, sizes):
    """Long chunks, lengths that are no multiple of them, a document inside, wide keys and wider values."""
    inputs = example(name, sum(lengths), len(lengths), sizes)
    compare(platform, name, inputs, Layout(lengths, chunk), (13,))


@pytest.mark.parametrize(
    "platform, name",
    [
        ("tpu", "scalar decay"),
        ("tpu", "vector decay, bonus"),
        ("tpu", "rwkv7"),
        ("gpu", "scalar decay"),
        ("gpu", "vector decay"),
    ],
)
def test_half_precision(platform, name):
    """Outputs and gradients in their dtypes, float32 states, all near the reference's for the same rows in float32."""
    (half, tolerance), layout = HALVES[platform], Layout(RAGGED, 16)
    inputs = example(name, sum(RAGGED), len(RAGGED), SMALL[platform])
    rounded = inputs | {"rows": {n: x.astype(half) if n in "qkv" else x for n, x in inputs["rows"].items()}}
    (o, final), gradients = compiled(platform, name, layout, DOCUMENTS)(rounded)
    assert o.dtype == half and final.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, rounded)
    want = compiled(None, name, layout, DOCUMENTS)(jax.tree.map(lambda x: x.astype(np.float32), rounded))
    assert_close(jax.tree.map(lambda x: x.astype(np.float32), ((o, final), gradients)), want, tolerance)
