"""Kernels of recurrences with decay, run on the host: values, states and gradients of the reference, token by token.

Without a TPU the kernels run in Pallas's interpreter, in which memory that no kernel wrote holds NaN.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.packed import Layout
from support.primitives import PRIMITIVES
from support.recurrences import DOCUMENTS, EXTREMES, RAGGED, TOLERANCE, outputs, with_gradients

from mom_jax.ops.dispatch import as_chunks
from mom_jax.ops.rank_one_decay import rank_one_decay_scan
from mom_jax.ops.scalar_decay import scalar_decay_scan
from mom_jax.ops.vector_decay import vector_decay_scan
from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import parts
from pallas_kernels.tpu import rank_one_decay as rank_one
from pallas_kernels.tpu import scalar_decay as scalar
from pallas_kernels.tpu import vector_decay as vector

# name: the kernels' module, their operator, its reference and its arguments before the chunks
OPERATORS = {
    "scalar decay": (scalar, scalar.scalar_decay, scalar_decay_scan, "qkvg"),
    "no decay": (scalar, scalar.scalar_decay, scalar_decay_scan, "qkvg"),
    "vector decay": (vector, vector.vector_decay, vector_decay_scan, "qkvgu"),
    "vector decay, bonus": (vector, vector.vector_decay, vector_decay_scan, "qkvgu"),
    "rank one": (rank_one, rank_one.rank_one_decay, rank_one_decay_scan, "qkvabg"),
}


def kernel(name, rows, shared, table, state):
    """The kernel as an operator over a chunk table."""
    return _run(name, rows, shared, as_chunks(table), state, interpret=True)


def reference(name, rows, shared, table, state):
    """The recurrence, one row after the other."""
    return _run(name, rows, shared, table, state)


def _run(name, rows, shared, chunks, state, **how):
    _, operator, scan, names = OPERATORS[name]
    given = {"g": None, "u": None} | rows | shared
    scale = rows["q"].shape[-1] ** -0.5
    return (operator if how else scan)(*(given[n] for n in names), chunks, state, scale, **how)


def example(name, tokens, segments, sizes=(64, 64), gate=lambda g: g, **changes):
    """Random inputs; those of rank one are RWKV7's."""
    primitive = PRIMITIVES["rwkv7" if name == "rank one" else name]
    changes |= dict.fromkeys(primitive.gates, gate)
    inputs = primitive.example(tokens, segments, sizes, **changes)
    if name == "rank one":
        rows = inputs["rows"]
        key, rate = rows.pop("kk"), rows.pop("rate")
        rows |= {"a": -key, "b": key * rate[..., None]}
    return inputs


def kimi(tokens, spread, gate, strength):
    """Kimi delta attention with keys of one direction, but for ``spread``, written at one strength."""
    inputs = example("rank one", tokens, len(RAGGED), gate=lambda g: np.full_like(g, gate))
    rows = inputs["rows"]
    key = 1 + spread * rows["k"]
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    written = {"k": key, "v": strength * rows["v"], "a": np.exp(rows["g"]) * key, "b": -strength * key}
    return inputs | {"rows": rows | written}


@functools.cache
def compiled(run, name, lengths, resets, chunk):
    """One program for all inputs of a shape."""
    function = functools.partial(outputs, functools.partial(run, name), Layout(lengths, chunk), resets)
    return jax.jit(functools.partial(with_gradients, function))


def compare(name, inputs, lengths=RAGGED, resets=DOCUMENTS, chunk=16, tolerance=TOLERANCE, atol=0.0):
    """Outputs, final states and gradients of the kernel, which must be those of the reference."""
    got, want = (compiled(run, name, lengths, resets, chunk)(inputs) for run in (kernel, reference))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(got, want, tolerance, atol)
    return got


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_equal_tokens(name):
    """Empty, one-token and ragged segments with documents; then gates of -1e4 and 0, alone and among weak ones.

    Segments without rows keep their state and pass its gradient on. Gradients of gates that let
    nothing through are 0 in theory.
    """
    inputs = example(name, sum(RAGGED), len(RAGGED))
    (_, final), gradients = compare(name, inputs)
    cotangent = np.random.default_rng(99)
    cotangent.normal(size=inputs["rows"]["v"].shape)
    np.testing.assert_array_equal(final[1], inputs["state"][1])
    expected = cotangent.normal(size=final.shape).astype(np.float32)
    np.testing.assert_array_equal(gradients["state"][1], expected[1])
    for extreme in EXTREMES.values() if name != "no decay" else ():
        compare(name, example(name, sum(RAGGED), len(RAGGED), gate=extreme), atol=1e-6)
    if name == "rank one":
        compare(name, kimi(sum(RAGGED), spread=0.02, gate=-1e-3, strength=0.98))
        # what the equations of a chunk lose in float32 where every token turns the state round: 2e-5
        compare(name, kimi(sum(RAGGED), spread=0.0, gate=-0.02, strength=2.0), tolerance=5e-5)


def test_no_state():
    """Without an initial state segments begin empty, and none returns."""
    lengths = (17, 0, 9)
    inputs = example("scalar decay", sum(lengths), len(lengths)) | {"state": None}
    (_, final), _ = compare("scalar decay", inputs, lengths, None)
    assert final is None


@pytest.mark.parametrize(("name", "sizes", "chunk"), [("no decay", (256, 512), 64), ("vector decay", (128, 64), 64)])
def test_sizes_of_models(name, sizes, chunk):
    """One segment that is no multiple of the chunk, in wider heads and longer chunks."""
    compare(name, example(name, 70, 1, sizes), (70,), None, chunk)


@pytest.mark.parametrize("name", ["scalar decay", "vector decay, bonus", "rank one"])
def test_bfloat16(name):
    """bfloat16 rows: everything within 2^-6 of the reference's values for the same rows, gradients in their dtypes."""
    inputs = example(name, sum(RAGGED), len(RAGGED))
    half = inputs | {"rows": {n: x.astype(jnp.bfloat16) if n in "qkv" else x for n, x in inputs["rows"].items()}}
    (o, final), gradients = compiled(kernel, name, RAGGED, DOCUMENTS, 16)(half)
    assert o.dtype == jnp.bfloat16 and final.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, half)
    want = compiled(reference, name, RAGGED, DOCUMENTS, 16)(jax.tree.map(lambda x: x.astype(np.float32), half))
    assert_close(jax.tree.map(lambda x: x.astype(np.float32), ((o, final), gradients)), want, 2**-6)


WRONG = {
    "K=48: the TPU kernels take 64, 128, 256": {"q": (32, 2, 48)},
    "V=96: the TPU kernels take 64, 128, 256, 512": {"v": (32, 2, 96)},
    "chunk=8: the TPU kernels take 16, 32, 64, 128": {"chunks": 4},
    "chunks.segment has 3 chunks: expected a divisor of the 32 rows of q": {"chunks": 3},
    "k is float32 (16, 2, 64): expected float32 or bfloat16 (32, 2, 64)": {"k": (16, 2, 64)},
    "g is float32 (32, 3): expected float32 (32, 2)": {"g": (32, 3)},
    "initial_state is float32 (3, 2, 64, 128): expected float32 (3, 2, 64, 64)": {"state": (3, 2, 64, 128)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    """One line names the argument, what it is, and what it should be."""
    shapes = {"q": (32, 2, 64), "k": (32, 2, 64), "v": (32, 2, 64), "g": (32, 2), "state": (3, 2, 64, 64), "chunks": 2}
    shapes |= WRONG[message]
    count = shapes.pop("chunks")
    x = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    chunks = Chunks(jnp.zeros(count, jnp.int32), jnp.zeros(count, bool), jnp.zeros(count, bool), None)
    with pytest.raises(ValueError) as error:
        scalar.scalar_decay(x["q"], x["k"], x["v"], x["g"], chunks, x["state"], 1.0)
    assert str(error.value) == message


def test_halves_are_refused():
    """float16 has too few exponents for decays."""
    assert (
        scalar.supported((32, 2, 64), (32, 2, 64), jnp.float16, 16)
        == "dtype=float16: the TPU kernels take float32, bfloat16"
    )


@pytest.mark.parametrize("name", ["scalar decay", "vector decay", "rank one"])
def test_memory_of_the_device(name, monkeypatch):
    """Published sizes fit 64 MiB; a device with less refuses what does not fit, and says how much it would need."""
    module = OPERATORS[name][0]
    shape = (256, 4, 256)
    monkeypatch.setattr(parts, "device", lambda: parts.Device("v5p", 64 * 2**20))
    assert [module.supported(shape, shape, jnp.float32, chunk) for chunk in (64, 128)] == [None, None]
    monkeypatch.setattr(parts, "device", lambda: parts.Device("v4", 4 * 2**20))
    need = max(module.vmem_bytes(256, 256, jnp.float32, 128)) / 2**20
    message = f"K=256, V=256, chunk=128 in float32 need {need:.0f} MiB of VMEM, of which v4 has 4: take smaller chunks"
    assert module.supported(shape, shape, jnp.float32, 128) == message
