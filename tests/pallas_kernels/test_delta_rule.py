"""The gated delta rule's kernels, interpreted on the host: values, states and gradients of a float64 loop."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from support.compare import assert_close
from support.compile import optimised
from support.delta_rule import CASES, NAMES, case, cotangents_of, example, expected, with_gradients
from support.packed import Layout

from mom_jax.ops.dispatch import as_chunks
from pallas_kernels.gpu import delta_rule as gpu
from pallas_kernels.tpu import delta_rule as tpu
from pallas_kernels.tpu.delta_rule_calls import KERNELS, Sizes, vmem_bytes

TOLERANCE = 1e-5  # of the largest value of each array, in float32


class Kernel(NamedTuple):
    """The operator of a platform, the smallest sizes H, K, V it is tested at, and what half precision costs there."""

    run: Callable
    sizes: tuple[int, int, int]
    half: str  # bfloat16 has no interpreter in Triton; with 8 bits instead of 11 it is eight times as far off
    tolerance: float


PLATFORMS = {
    "tpu": Kernel(tpu.delta_rule, (2, 64, 64), "bfloat16", 2**-6),
    "gpu": Kernel(gpu.delta_rule, (1, 16, 16), "float16", 2e-3),
}
each_platform = pytest.mark.parametrize("platform", PLATFORMS)


def rule(platform, layout, resets, interpret, inputs):
    """Outputs of the tokens and final states."""
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    chunks, scale = as_chunks(layout.table(resets)), q.shape[-1] ** -0.5
    run = PLATFORMS[platform].run
    o, final = run(q, k, v, g, beta, chunks, inputs.get("state"), scale, interpret=interpret)
    return o[layout.index], final


@functools.cache
def compiled(platform, lengths, chunk, resets=None, interpret=True):
    """One program for all inputs of a shape."""
    function = functools.partial(rule, platform, Layout(lengths, chunk), resets, interpret)
    return optimised(functools.partial(with_gradients, function))


def measured(platform, inputs, lengths, chunk, resets=None, interpret=True):
    """Outputs, final states and gradients."""
    return compiled(platform, tuple(lengths), chunk, resets or None, interpret)(inputs, cotangents_of(inputs))


@each_platform
@pytest.mark.parametrize("name", CASES)
def test_values_states_and_gradients(platform, name):
    """Everything within 1e-5 of the float64 loop, over empty and one-token segments, documents and extremes."""
    inputs, lengths, resets, want = case(name, PLATFORMS[platform].sizes)
    got = measured(platform, inputs, lengths, 16, resets)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    if name in ("ragged", "documents"):
        np.testing.assert_array_equal(got[0][1][1], inputs["state"][1])  # an empty segment keeps its state
        np.testing.assert_array_equal(got[1]["state"][1], cotangents_of(inputs)[1][1])  # and passes its gradient on
    # gradients of gates that decay to 0 are 0 in theory
    assert_close(got, want, TOLERANCE, atol=1e-6 if name.startswith("total decay") else 0)


@pytest.mark.parametrize(
    "platform, lengths, chunk, sizes, resets",
    [
        ("tpu", (70, 0, 130), 64, (1, 64, 128), (100,)),
        ("tpu", (200,), 128, (1, 128, 64), ()),
        ("tpu", (20,), 32, (1, 256, 512), ()),
        ("gpu", (70, 0, 50), 64, (2, 64, 128), (100,)),
        ("gpu", (20,), 32, (1, 128, 64), ()),
        ("gpu", (20,), 16, (1, 256, 128), ()),
    ],
)
def test_sizes_of_the_models(platform, lengths, chunk, sizes, resets):
    """Long chunks, lengths that are no multiple of them, documents inside, wide keys and wider values."""
    inputs = example(sum(lengths), len(lengths), sizes)
    got = measured(platform, inputs, lengths, chunk, resets)
    assert_close(got, expected(inputs, lengths, resets), TOLERANCE)


@each_platform
def test_half_precision(platform):
    """Outputs and gradients in their dtypes, float32 states, all near those of the same rows in float32."""
    lengths, (_, _, half, tolerance) = (70, 5), PLATFORMS[platform]
    inputs = {name: x.astype(half) if name in "qkv" else x for name, x in example(75, 2, (1, 64, 64)).items()}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    do, dfinal = cotangents_of(wide)
    got = compiled(platform, lengths, 64)(inputs, (do.astype(half), dfinal))
    assert got[0][0].dtype == half and got[0][1].dtype == jnp.float32
    assert {name: x.dtype for name, x in got[1].items()} == {name: x.dtype for name, x in inputs.items()}
    assert_close(got, expected(wide, lengths, ()), tolerance)


@each_platform
def test_no_state_is_a_state_of_zeros(platform):
    """Without an initial state segments begin empty and no state returns: outputs and gradients are those of zeros."""
    inputs, lengths, resets, _ = case("documents", PLATFORMS[platform].sizes)
    do, dfinal = cotangents_of(inputs)
    zeros = inputs | {"state": jnp.zeros_like(inputs["state"])}
    want, gradients = compiled(platform, lengths, 16, resets)(zeros, (do, jnp.zeros_like(dfinal)))
    rows = {name: x for name, x in inputs.items() if name != "state"}
    got = compiled(platform, lengths, 16, resets)(rows, (do, None))
    assert_close(got, ((want[0], None), {name: gradients[name] for name in rows}), 1e-6)


@each_platform
def test_nothing_but_unused_chunks(platform):
    """Segments without rows keep their states and pass their gradients on."""
    inputs = example(0, 2, PLATFORMS[platform].sizes)
    (_, final), gradients = measured(platform, inputs, (0, 0), 16)
    np.testing.assert_array_equal(final, inputs["state"])
    np.testing.assert_array_equal(gradients["state"], cotangents_of(inputs)[1])


@each_platform
@pytest.mark.parametrize("stated", [True, False])
def test_unused_chunks_disturb_nothing(platform, stated):
    """What comes back for them is finite, whatever cotangents they get, and changes no other row."""
    layout, inputs = Layout((17, 0, 9), 16, spare_chunks=2), example(26, 3, PLATFORMS[platform].sizes)
    packed = [layout.pack(inputs[name]) for name in NAMES[:-1]]
    chunks, state = as_chunks(layout.table((20,))), inputs["state"] if stated else None

    @jax.jit
    def gradients(rows, cotangent):
        run = functools.partial(PLATFORMS[platform].run, interpret=True)
        o, pull = jax.vjp(lambda *x: run(*x, chunks, state, 0.25)[0], *rows)
        return o, *pull(cotangent)

    quiet = jnp.ones_like(packed[2])
    got, want = (gradients(packed, do) for do in (quiet.at[-32:].set(7.0), quiet))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(*(jax.tree.map(lambda x: x[layout.index], values) for values in (got, want)), 1e-6)


def test_unwritten_memory_is_not_read():
    """Memory that no TPU kernel has written is NaN here: states of empty segments, scratch, unused chunks."""
    lengths, inputs = (5, 0, 17, 0), example(22, 4, PLATFORMS["tpu"].sizes)
    nan = pltpu.InterpretParams(uninitialized_memory="nan")
    got = measured("tpu", inputs, lengths, 16, interpret=nan)
    assert_close(got, expected(inputs, lengths, ()), TOLERANCE)


def test_vmem_grows_with_heads():
    """Blocks are counted twice, for what is read while another is computed."""
    sizes = Sizes(heads=4, chunks=8, rows=128, keys=256, values=256, segments=3, dtype="bfloat16")
    for kernel in KERNELS:
        assert vmem_bytes(kernel, sizes, 4) == 4 * vmem_bytes(kernel, sizes, 1) - 3 * 2 * 4096
    state = 4 * 256 * 256
    assert vmem_bytes("reverse", sizes, 1) > 2 * (7 * 2 * 128 * 256 + 3 * state) + state
