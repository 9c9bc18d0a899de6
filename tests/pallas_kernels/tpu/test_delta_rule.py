"""The gated delta rule's TPU kernels, interpreted on the host, against a float64 loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from support.compare import assert_close
from support.delta_rule import CASES, NAMES, case, cotangents_of, example, expected, with_gradients
from support.packed import Layout

from mom_jax.ops.dispatch import as_chunks
from pallas_kernels.tpu.delta_rule import delta_rule, supported, vmem_need
from pallas_kernels.tpu.delta_rule_calls import KERNELS, REVERSE, Sizes, vmem_bytes

TOLERANCE = 1e-5  # of the largest value of each array, in float32
SIZES = (2, 64, 64)


def rule(layout, resets, interpret, inputs):
    """Outputs of the tokens and final states."""
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    chunks, scale = as_chunks(layout.table(resets)), q.shape[-1] ** -0.5
    o, final = delta_rule(q, k, v, g, beta, chunks, inputs.get("state"), scale, interpret=interpret)
    return o[layout.index], final


@functools.cache
def compiled(lengths, chunk, resets=None, interpret=True):
    """One program for all inputs of a shape."""
    function = functools.partial(rule, Layout(lengths, chunk), resets, interpret)
    return jax.jit(functools.partial(with_gradients, function))


def measured(inputs, lengths, chunk, resets=None, interpret=True):
    """Outputs, final states and gradients."""
    return compiled(tuple(lengths), chunk, resets or None, interpret)(inputs, cotangents_of(inputs))


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
    [((70, 0, 130), 64, (1, 64, 128), (100,)), ((200,), 128, (1, 128, 64), ()), ((20,), 32, (1, 256, 512), ())],
)
def test_sizes_of_the_models(lengths, chunk, sizes, resets):
    """Long chunks, lengths that are no multiple of them, documents inside, wide keys and wider values."""
    inputs = example(sum(lengths), len(lengths), sizes)
    assert_close(measured(inputs, lengths, chunk, resets), expected(inputs, lengths, resets), TOLERANCE)


def test_unwritten_memory_is_not_read():
    """Memory that no kernel has written is NaN here: states of empty segments, scratch, unused chunks."""
    lengths, inputs = (5, 0, 17, 0), example(22, 4, SIZES)
    nan = pltpu.InterpretParams(uninitialized_memory="nan")
    got = measured(inputs, lengths, 16, interpret=nan)
    assert_close(got, expected(inputs, lengths, ()), TOLERANCE)


def test_nothing_but_unused_chunks():
    """Segments without rows keep their states and pass their gradients on."""
    inputs = example(0, 2, SIZES)
    (_, final), gradients = measured(inputs, (0, 0), 16)
    np.testing.assert_array_equal(final, inputs["state"])
    np.testing.assert_array_equal(gradients["state"], cotangents_of(inputs)[1])


def test_no_state_is_a_state_of_zeros():
    """Without an initial state segments begin empty and no state returns: outputs and gradients are those of zeros."""
    inputs, lengths, resets, _ = case("documents", SIZES)
    do, dfinal = cotangents_of(inputs)
    zeros = inputs | {"state": jnp.zeros_like(inputs["state"])}
    want, gradients = compiled(lengths, 16, resets)(zeros, (do, jnp.zeros_like(dfinal)))
    rows = {name: x for name, x in inputs.items() if name != "state"}
    got = compiled(lengths, 16, resets)(rows, (do, None))
    assert_close(got, ((want[0], None), {name: gradients[name] for name in rows}), 1e-6)


def test_bfloat16():
    """bfloat16 rows: within 2^-6 of the same rows in float32, in the dtypes of the inputs; float32 states."""
    lengths = (70, 5)
    inputs = {name: x.astype(jnp.bfloat16) if name in "qkv" else x for name, x in example(75, 2, (1, 64, 64)).items()}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    do, dfinal = cotangents_of(wide)
    got = compiled(lengths, 64)(inputs, (do.astype(jnp.bfloat16), dfinal))
    assert got[0][0].dtype == jnp.bfloat16 and got[0][1].dtype == jnp.float32
    assert {name: x.dtype for name, x in got[1].items()} == {name: x.dtype for name, x in inputs.items()}
    assert_close(got, expected(wide, lengths, ()), 2**-6)


BAD = {
    "K=8: the TPU kernels take 64, 128, 256": {"q": ((32, 2, 8), "float32"), "k": ((32, 2, 8), "float32")},
    "V=96: the TPU kernels take 64, 128, 256, 512": {"v": ((32, 2, 96), "float32")},
    "dtype=float16: the TPU kernels take float32, bfloat16": {"q": ((32, 2, 64), "float16")},
    "k has shape": {"k": ((32, 2, 64), "bfloat16")},
    "beta has shape": {"beta": ((32, 1), "float32")},
    "initial_state has shape": {"initial": ((2, 2, 64, 128), "float32")},
    "chunks.document has shape": {"document": ((16,), "int32")},
    "chunks.segment has 2 chunks, which do not divide the 33 rows": {"q": ((33, 2, 64), "float32")},
    "chunk=256": {"q": ((512, 2, 64), "float32")},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    """One line that names the argument, its value and what is taken."""
    shapes = dict.fromkeys(("q", "k", "v"), ((32, 2, 64), "float32")) | dict.fromkeys(
        ("g", "beta"), ((32, 2), "float32")
    )
    shapes |= {"initial": ((2, 2, 64, 64), "float32"), "document": ((32,), "int32")} | BAD[message]
    x = {name: jnp.zeros(*shape) for name, shape in shapes.items()}
    chunks = as_chunks(Layout((16,), 16).table())._replace(document=x["document"])
    with pytest.raises(ValueError, match=re.escape(message)):
        delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"], chunks, x["initial"], 1.0, interpret=True)


def test_supported():
    """Every size that is offered fits a TPU; the reason names what does not."""
    for chunk in (16, 32, 64, 128):
        assert supported((1024, 4, 256), (1024, 4, 512), jnp.float32, chunk) is None
    assert "chunk=48" in str(supported((48, 4, 64), (48, 4, 64), jnp.float32, 48))


def test_vmem_grows_with_heads():
    """Blocks are counted twice, for what is read while another is computed."""
    sizes = Sizes(heads=4, chunks=8, rows=128, keys=256, values=256, segments=3, dtype="bfloat16")
    for kernel in KERNELS:
        assert vmem_bytes(kernel, sizes, 4) == 4 * vmem_bytes(kernel, sizes, 1) - 3 * 2 * 4096
    state = 4 * 256 * 256
    assert vmem_need((1024, 4, 256), (1024, 4, 256), jnp.bfloat16, 128) == vmem_bytes(REVERSE, sizes, 4)
    assert vmem_bytes(REVERSE, sizes, 1) > 2 * (7 * 2 * 128 * 256 + 3 * state) + state
