"""Every recurrence: chunks = single tokens = single steps. The numbers of the reference: `test_naive_goldens.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import some
from support.compare import assert_close
from support.compile import optimised
from support.packed import Layout
from support.primitives import PRIMITIVES, VARIANTS
from support.recurrences import (
    DIRECTIONS,
    DOCUMENTS,
    EXTREMES,
    RAGGED,
    TOLERANCE,
    with_gradients,
    with_padding,
)
from support.recurrences import outputs as outputs_of

from mom_jax.errors import InputError

CASES = PRIMITIVES | VARIANTS
CHUNK = 8  # rows
# decays of a head, of channels, none; a product and several that decide what is written; slots; inner models; tables
FIRST = (
    "delta rule", "scalar decay", "vector decay", "no decay", "kda", "delta product", "slots", "ttt", "sparse delta",
)  # fmt: skip


def outputs(primitive, impl, layout, resets, inputs):
    """Outputs of the tokens, and final states."""
    return outputs_of(functools.partial(primitive.run, impl=impl), layout, resets, inputs)


@functools.cache
def compiled(name, impl, lengths, resets, chunk):
    """One program for all inputs of a shape."""
    function = functools.partial(outputs, CASES[name], impl, Layout(lengths, chunk), resets)
    return jax.jit(functools.partial(with_gradients, function))


def measured(name, impl, inputs, lengths, resets=None, chunk=CHUNK):
    """Outputs, final states and gradients."""
    return compiled(name, impl, lengths, resets, chunk)(inputs)


def ragged(name, **changes):
    """Random inputs of `RAGGED`, with zeros on padding rows."""
    inputs = CASES[name].example(sum(RAGGED), len(RAGGED), **changes)
    return with_padding(inputs, Layout(RAGGED, CHUNK), 0.0)


@functools.cache
def compiled_values(name, impl, layout, resets):
    """The same without gradients."""
    return jax.jit(functools.partial(outputs, PRIMITIVES[name], impl, layout, resets))


# a step of these reads what it has written, its answer to itself, or few of its slots
_SEVERAL_READS = ("delta product", "trapezoid", "log linear", "mesa", "sparse delta", "ttt", "titans", "titans, norm")


@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name not in _SEVERAL_READS])
def test_a_step_reads_its_memories_once(name):
    """Every reading is of the state that the step was given, not of what it made of it, and there is one for each."""
    inputs = CASES[name].example(3, 3)
    jaxpr = jax.make_jaxpr(PRIMITIVES[name].step)(*(inputs[part] for part in ("rows", "shared", "state"))).jaxpr
    states = {x.aval.shape for x in jaxpr.invars if x.aval.ndim == 4}
    reduces = [eqn for eqn in jaxpr.eqns if not {x.aval.shape for x in eqn.outvars} & states]
    read = [x for eqn in reduces for x in eqn.invars if x.aval.shape in states]
    assert len(read) == len(states) and set(map(id, read)) <= set(map(id, jaxpr.invars))


def check_padding_is_inert(name):
    """Whatever stands on padding rows: once masked it neither writes nor decays, in values, states and gradients."""
    inputs = ragged(name)
    noisy = with_padding(inputs, Layout(RAGGED, CHUNK), 3.0)
    for impl in ("xla", "reference"):
        got, want = (measured(name, impl, x, RAGGED, DOCUMENTS) for x in (noisy, inputs))
        jax.tree.map(np.testing.assert_array_equal, got[0], want[0])
        assert_close(got[1], want[1], TOLERANCE)
        assert not any(np.any(x) for x in jax.tree.leaves(got[1]["padding"]))


@pytest.mark.parametrize("name", some(CASES, FIRST))
def test_chunks_equal_tokens(name):
    """Values, states and gradients over empty, one-token and ragged segments with documents; empty ones keep states.

    Then log gates of -1e4 and of 0, alone and among weak ones: as exact as others. Gradients of gates
    that let nothing through are 0 in theory. Then keys of one direction, which make a chunk's inverse large. One test,
    because the programs are the same.
    """
    inputs = ragged(name)
    got, want = (measured(name, impl, inputs, RAGGED, DOCUMENTS) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), got[0][1], inputs["state"])
    check_padding_is_inert(name)
    for extreme in EXTREMES.values() if CASES[name].gates else ():
        inputs = ragged(name, **dict.fromkeys(CASES[name].gates, extreme))
        got, want = (measured(name, impl, inputs, RAGGED, DOCUMENTS) for impl in ("xla", "reference"))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        assert_close(got, want, TOLERANCE, atol=1e-6)
    for direction, change in DIRECTIONS.items() if name in PRIMITIVES and "beta" in CASES[name].rows else ():
        got, want = (measured(name, impl, ragged(name, **change), RAGGED, DOCUMENTS) for impl in ("xla", "reference"))
        # what a decay for each channel loses in float32 where the state turns round at every token: 1e-5
        assert_close(got, want, 2e-5 if direction == "equal, strength 2" and name == "kda" else TOLERANCE)


@pytest.mark.parametrize("name", some(PRIMITIVES, FIRST))
def test_steps_calls_and_documents(name):
    """In float64: steps over four rows at once, and two calls in chunks of which the second continues the first; then
    documents in one segment, without a state, beside segments of their own with states of zeros.

    One test, because the programs are the same.
    """
    drawn = jax.tree.map(np.float64, CASES[name].example(4 * 22, 4))
    shared, first_state = drawn["shared"], drawn["state"]
    by_row = jax.tree.map(lambda x: x.reshape(4, 22, *x.shape[1:]), drawn["rows"])
    rows = lambda part: jax.tree.map(lambda x: x[:, part].reshape(-1, *x.shape[2:]), by_row)  # noqa: E731

    def steps(state, x):
        o, state = PRIMITIVES[name].step(x, shared, state)
        return state, o

    def chunks(lengths, resets, part, state):
        inputs = {"rows": rows(part), "shared": shared, "state": state}
        return jax.device_get(compiled_values(name, "xla", Layout(lengths, 8), resets)(inputs))

    begin, end, four = slice(0, 11), slice(11, 22), (11,) * 4
    with jax.enable_x64(True):
        by_token = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), by_row)
        want_state, want = jax.device_get(jax.jit(functools.partial(jax.lax.scan, steps))(first_state, by_token))
        o, state = chunks(four, None, begin, first_state)
        more, state = chunks(four, None, end, state)
        together, nothing = chunks((44,), (11, 22, 33), begin, None)
        alone, _ = chunks(four, None, begin, jax.tree.map(np.zeros_like, first_state))
    got = np.concatenate([x.reshape(4, 11, *x.shape[1:]) for x in (o, more)], 1)
    assert {x.dtype for x in jax.tree.leaves((got, state, want_state))} == {np.dtype(np.float64)}
    assert_close((got, state), (np.swapaxes(want, 0, 1), want_state), 1e-12)
    assert nothing is None
    assert_close(together, alone, 1e-12)


@pytest.mark.parametrize("name", ["vector decay", "ttt"])
def test_no_state_is_a_state_of_zeros(name):
    """The reference form without a state."""
    layout, inputs = Layout((17, 0, 9), 16), CASES[name].example(26, 3)
    zeros, run = jax.tree.map(np.zeros_like, inputs["state"]), compiled_values(name, "reference", layout, (20,))
    (got, nothing), (want, _) = (run(inputs | {"state": x}) for x in (None, zeros))
    assert nothing is None
    assert_close(got, want, 1e-6)


@pytest.mark.exhaustive
def test_long_sequence():
    """Thousands of tokens, with slow decay and with decay that underflows in a chunk: no overflow, no lost digits."""
    tokens = 3_000
    gates = lambda g: np.where(np.arange(tokens)[:, None, None] % 1000 < 500, 1e-3 * g, 30 * g)  # noqa: E731
    inputs = CASES["vector decay"].example(tokens, 1, (4, 4), g=gates)
    function = lambda impl: functools.partial(outputs, PRIMITIVES["vector decay"], impl, Layout((tokens,), 64), None)  # noqa: E731
    got, want = (optimised(functools.partial(with_gradients, function(impl)))(inputs) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)


@pytest.mark.exhaustive
def test_sizes_of_models():
    """K = V = 64 in a chunk of 64 rows and a part of one, a document inside; the delta rule's are in `test_mom.py`."""
    inputs = CASES["kda"].example(70, 2, (64, 64))
    got, want = (measured("kda", impl, inputs, (70, 0), (40,), 64) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)


@pytest.mark.parametrize("name", some(PRIMITIVES, FIRST))
def test_bfloat16(name):
    """bfloat16 rows: outputs in the dtype of the values, within 2^-7 of float32; states float32.

    Gradients in the dtypes of the inputs, with 64-bit types too.
    """
    layout, inputs = Layout(RAGGED, CHUNK), ragged(name)
    half = inputs | {"rows": {n: x.astype(jnp.bfloat16) if n in "qkv" else x for n, x in inputs["rows"].items()}}
    o, state = compiled_values(name, "xla", layout, DOCUMENTS)(half)
    rounded = jax.tree.map(lambda x: x.astype(np.float32), half)
    want, want_state = measured(name, "reference", rounded, RAGGED, DOCUMENTS)[0]
    written = jax.eval_shape(lambda: PRIMITIVES[name].packed(half["rows"], half["shared"]).v)
    assert o.dtype == written.dtype and all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
    assert_close(o.astype(jnp.float32), want, 2**-7)
    assert_close(state, want_state, TOLERANCE)
    with jax.enable_x64(True):
        for impl in ("xla", "reference") if name == "delta rule" else ("xla",):  # all references are one function
            run = functools.partial(outputs, PRIMITIVES[name], impl, layout, DOCUMENTS)
            (_, state), gradients = jax.eval_shape(functools.partial(with_gradients, run), half)
            assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
            assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, half)


@pytest.mark.parametrize("name", ["delta rule", "vector decay"])
def test_vmap_and_checkpoint(name):
    """A leading axis by vmap, and rematerialisation, change neither values nor gradients."""
    several = [ragged(name, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *several)
    function = jax.checkpoint(functools.partial(outputs, PRIMITIVES[name], "xla", Layout(RAGGED, CHUNK), DOCUMENTS))
    got = jax.jit(jax.vmap(functools.partial(with_gradients, function)))(stacked)
    want = [measured(name, "xla", inputs, RAGGED, DOCUMENTS) for inputs in several]
    assert_close(got, jax.tree.map(lambda *x: np.stack(x), *want), TOLERANCE)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_unknown_implementation(name):
    """The message names those that exist."""
    run = functools.partial(outputs, PRIMITIVES[name], "cuda", Layout((3,), 16), None)
    with pytest.raises(InputError, match=r"impl=cuda: choose one of auto, reference, xla"):
        jax.eval_shape(run, CASES[name].example(3, 1))


@pytest.mark.parametrize("name", ["delta rule", "scalar decay", "vector decay"])
def test_scale(name):
    """``scale`` replaces K^-0.5."""
    layout, inputs = Layout((9,), 16), CASES[name].example(9, 1)
    rows = jax.tree.map(layout.pack, inputs["rows"])
    run = jax.jit(functools.partial(PRIMITIVES[name].run, rows, {}, layout.table(), None), static_argnames="scale")
    assert_close(run(scale=1.0)[0], run()[0] * 8**0.5, 1e-6)
