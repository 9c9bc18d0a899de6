"""Scalar and vector decay in Triton, interpreted on the host, against the token-by-token form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.packed import Layout
from support.primitives import PRIMITIVES

from mom_jax.ops.dispatch import as_chunks
from pallas_kernels.gpu import scalar_decay as scalar
from pallas_kernels.gpu import vector_decay as vector

NAMES = ("no decay", "scalar decay", "vector decay", "vector decay, bonus")
TOLERANCE = 1e-5  # of the largest value of each array, in float32
HALF = 2e-3  # of the same inputs in float32; float16 has 11 bits, bfloat16 with 8 is eight times as far
SIZES = (16, 16)
RAGGED = (17, 0, 1, 16, 33, 1, 2, 0)
DOCUMENTS = (0, 5, 16, 17, 18, 40, 41, 66, 68)


def kernels(x, shared, table, state, scale):
    """Outputs of packed rows and final states."""
    chunks = as_chunks(table)
    if x.get("g") is None or x["g"].ndim == 2:
        return scalar.scalar_decay(x["q"], x["k"], x["v"], x.get("g"), chunks, state, scale, interpret=True)
    rows = (x["q"], x["k"], x["v"], x["g"], shared.get("u"))
    return vector.vector_decay(*rows, chunks, state, scale, interpret=True)


def run(name, layout, resets, inputs):
    """Outputs of the tokens and final states, of a primitive's reference form or of the kernels."""
    rows, table = jax.tree.map(layout.pack, inputs["rows"]), layout.table(resets)
    if name is None:
        o, final = kernels(rows, inputs["shared"], table, inputs["state"], rows["k"].shape[-1] ** -0.5)
    else:
        o, final = PRIMITIVES[name].run(rows, inputs["shared"], table, inputs["state"], "reference")
    return o[layout.index], final


@functools.cache
def compiled(name, layout, resets):
    """One program for all inputs of a shape: values, and gradients for fixed random cotangents."""

    def gradients(inputs):
        values, pull = jax.vjp(functools.partial(run, name, layout, resets), inputs)
        rng = np.random.default_rng(99)
        return values, pull(jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), values))[0]

    return jax.jit(gradients)


def both(name, inputs, lengths, resets=None, chunk=16):
    """What the kernels give and what the reference gives."""
    layout = Layout(lengths, chunk)
    return compiled(None, layout, resets)(inputs), compiled(name, layout, resets)(inputs)


SHORT = (20, 0, 3)
EXTREMES = {
    "total": lambda g: np.full_like(g, -1e4),
    "strong among weak": lambda g: np.where((np.arange(g.size) % 5 == 0).reshape(g.shape), -50, 0.1 * g),
    "total among weak": lambda g: np.where((np.arange(g.size) % 7 == 0).reshape(g.shape), -1e4, 0.1 * g),
    "weak": lambda g: 1e-3 * g,
}


@pytest.mark.parametrize("name", NAMES)
def test_values_states_and_gradients(name):
    """Empty, one-token and ragged segments with documents."""
    inputs = PRIMITIVES[name].example(sum(RAGGED), len(RAGGED), SIZES)
    got, want = both(name, inputs, RAGGED, DOCUMENTS)
    assert_close(got, want, TOLERANCE)
    np.testing.assert_array_equal(got[0][1][1], inputs["state"][1])  # an empty segment keeps its state


@pytest.mark.parametrize("name", [name for name in NAMES if PRIMITIVES[name].gates])
def test_gates_of_every_strength(name):
    """None overflows, and a strong one costs the others no digits. One test, because the programs are the same."""
    for extreme in EXTREMES.values():
        inputs = PRIMITIVES[name].example(sum(SHORT), len(SHORT), SIZES, g=extreme)
        got, want = both(name, inputs, SHORT)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        assert_close(got, want, TOLERANCE, atol=1e-6)  # gradients of gates that let nothing through are 0 in theory


@pytest.mark.parametrize(
    ("name", "lengths", "chunk", "sizes"),
    [
        ("scalar decay", (70, 0), 64, (64, 128)),
        ("vector decay", (70, 0), 64, (64, 128)),
        ("scalar decay", (20,), 32, (256, 64)),
        ("vector decay, bonus", (20,), 32, (128, 64)),
    ],
)
def test_sizes_of_the_models(name, lengths, chunk, sizes):
    """Long chunks, lengths that are no multiple of them, a document inside, wide keys and wider values."""
    inputs = PRIMITIVES[name].example(sum(lengths), len(lengths), sizes)
    assert_close(*both(name, inputs, lengths, (13,), chunk), TOLERANCE)


@pytest.mark.parametrize("name", ["scalar decay", "vector decay"])
def test_float16(name):
    """Half-precision rows: outputs and gradients in their dtype, states float32, all near those in float32."""
    lengths, resets = (70, 5), (30,)
    inputs = PRIMITIVES[name].example(75, 2, (64, 64))
    rows = {n: x.astype(np.float16) if n in "qkv" else x for n, x in inputs["rows"].items()}
    half, layout = inputs | {"rows": rows}, Layout(lengths, 64)
    got = compiled(None, layout, resets)(half)
    want = compiled(name, layout, resets)(jax.tree.map(lambda x: x.astype(np.float32), half))
    assert {n: x.dtype for n, x in got[1]["rows"].items()} == {n: x.dtype for n, x in rows.items()}
    assert got[0][0].dtype == jnp.float16 and got[0][1].dtype == jnp.float32
    assert_close(got, want, HALF)


@pytest.mark.parametrize("name", ["scalar decay", "vector decay"])
def test_no_state_is_a_state_of_zeros(name):
    """Without an initial state segments begin empty and no state returns; unused chunks disturb nothing."""
    layout, inputs = Layout((17, 0, 9), 16, spare_chunks=2), PRIMITIVES[name].example(26, 3, SIZES)
    zeros = np.zeros_like(inputs["state"])
    unused = np.full((32, *inputs["rows"]["v"].shape[1:]), 7.0, np.float32)

    def gradients(state, rows):
        packed = jax.tree.map(layout.pack, rows)

        def outputs(rows):
            o, final = kernels(rows, {}, layout.table((20,)), state, 0.25)
            assert (final is None) == (state is None)
            return o

        o, pull = jax.vjp(outputs, packed)
        return o[layout.index], jax.tree.map(lambda x: x[layout.index], pull(o.at[-32:].set(unused))[0])

    got, want = (jax.jit(functools.partial(gradients, state))(inputs["rows"]) for state in (None, zeros))
    assert_close(got, want, 1e-6)


def test_nothing_but_unused_chunks():
    """Segments without rows keep their states and pass their gradients on."""
    inputs = PRIMITIVES["scalar decay"].example(0, 2, SIZES)
    (_, final), gradients = compiled(None, Layout((0, 0), 16), None)(inputs)
    np.testing.assert_array_equal(final, inputs["state"])
    cotangents = np.random.default_rng(99)
    cotangents.normal(size=(0, *SIZES))
    np.testing.assert_array_equal(gradients["state"], cotangents.normal(size=final.shape).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((16, 2, 96)), "k": jnp.zeros((16, 2, 96))}, "head size K=96 is none of 16, 32, 64"),
        ({"v": jnp.zeros((16, 2, 1024))}, "head size V=1024 is none of"),
        ({"v": jnp.zeros((16, 2, 16), jnp.bfloat16)}, "q, k and v are float32, float32 and bfloat16"),
        ({"k": jnp.zeros((16, 2, 32))}, "do not fit"),
        ({"g": jnp.zeros((16, 3))}, "g (16, 3) is not [N, H"),
        ({"initial_state": jnp.zeros((2, 2, 16, 8))}, "initial_state (2, 2, 16, 8) is not [S, H, K, V]"),
        ({"device": "sm_70"}, "device=sm_70 is none of"),
        ({"segment": jnp.zeros(3, jnp.int32)}, "N=16 rows in 3 chunks"),
    ],
)
def test_refuses(change, message):
    """`ValueError` with one line, by both operators; `refusal` gives the same text."""
    chunks = as_chunks(Layout((16,), 16, spare_chunks=0).table())
    x = dict.fromkeys(("q", "k", "v"), jnp.zeros((16, 2, 16))) | {"g": jnp.zeros((16, 2)), "initial_state": None}
    x |= {"device": "sm_90"} | change
    chunks = chunks._replace(segment=x.pop("segment", chunks.segment))
    device, g, state = x.pop("device"), x.pop("g"), x.pop("initial_state")
    bonus = jnp.zeros((2, 16))
    wide = jnp.zeros((16, 2, 16)) if g.shape == (16, 2) else g
    for module, arguments in ((scalar, (g,)), (vector, (wide, bonus))):
        call = (*x.values(), *arguments, chunks, state, 1.0)
        assert message in str(module.refusal(*call, device=device))
        operator = module.scalar_decay if module is scalar else module.vector_decay
        with pytest.raises(ValueError, match=re.escape(message)):
            operator(*call, device=device)
