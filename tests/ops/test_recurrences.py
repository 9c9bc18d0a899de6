"""Every recurrence: chunks = single tokens = single steps. The numbers of the reference: `test_naive_goldens.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def outputs(primitive, impl, layout, resets, inputs):
    """Outputs of the tokens, and final states."""
    return outputs_of(functools.partial(primitive.run, impl=impl), layout, resets, inputs)


@functools.cache
def compiled(name, impl, lengths, resets, chunk, jit=jax.jit):
    """One program for all inputs of a shape."""
    function = functools.partial(outputs, CASES[name], impl, Layout(lengths, chunk), resets)
    return jit(functools.partial(with_gradients, function))


def measured(name, impl, inputs, lengths, resets=None, chunk=8, jit=jax.jit):
    """Outputs, final states and gradients."""
    return compiled(name, impl, lengths, resets, chunk, jit)(inputs)


def ragged(name, **changes):
    """Random inputs of `RAGGED`, with zeros on padding rows."""
    inputs = example(name, sum(RAGGED), len(RAGGED), **changes)
    return with_padding(inputs, Layout(RAGGED, 8), 0.0)


@functools.cache
def compiled_values(name, impl, layout, resets):
    """The same without gradients."""
    return jax.jit(functools.partial(outputs, PRIMITIVES[name], impl, layout, resets))


def values(name, impl, layout, resets, inputs):
    """Outputs and final states alone."""
    return compiled_values(name, impl, layout, resets)(inputs)


def example(name, *arguments, **changes):
    """Random inputs of a recurrence."""
    return CASES[name].example(*arguments, **changes)


# a step of these reads what it has written, its answer to itself, or few of its slots
_SEVERAL_READS = ("delta product", "trapezoid", "log linear", "mesa", "sparse delta", "ttt", "titans", "titans, norm")


@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name not in _SEVERAL_READS])
def test_a_step_reads_its_memories_once(name):
    """Every reading is of the state that the step was given, not of what it made of it, and there is one for each."""
    inputs = example(name, 3, 3)
    jaxpr = jax.make_jaxpr(PRIMITIVES[name].step)(*(inputs[part] for part in ("rows", "shared", "state"))).jaxpr
    states = {x.aval.shape for x in jaxpr.invars if x.aval.ndim == 4}
    reduces = [eqn for eqn in jaxpr.eqns if not {x.aval.shape for x in eqn.outvars} & states]
    read = [x for eqn in reduces for x in eqn.invars if x.aval.shape in states]
    assert len(read) == len(states) and set(map(id, read)) <= set(map(id, jaxpr.invars))


def check_padding_is_inert(name):
    """Whatever stands on padding rows: once masked it neither writes nor decays, in values, states and gradients."""
    inputs = ragged(name)
    noisy = with_padding(inputs, Layout(RAGGED, 8), 3.0)
    for impl in ("xla", "reference"):
        got, want = (measured(name, impl, x, RAGGED, DOCUMENTS) for x in (noisy, inputs))
        jax.tree.map(np.testing.assert_array_equal, got[0], want[0])
        assert_close(got[1], want[1], TOLERANCE)
        assert not any(np.any(x) for x in jax.tree.leaves(got[1]["padding"]))


@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_tokens(name):
    """Values, states and gradients over empty, one-token and ragged segments with documents; empty ones keep states.

    Then log gates of -1e4 and of 0, alone and among weak ones: as exact as others. Gradients of gates
    that let nothing through are 0 in theory. One test, because the programs are the same.
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


@pytest.mark.parametrize("name", PRIMITIVES)
def test_steps_equal_two_calls(name):
    """Steps over four rows at once, and two calls in chunks of which the second continues the first."""
    lengths, cut, inputs = (22,) * 4, 11, example(name, 4 * 22, 4)
    by_row = jax.tree.map(lambda x: np.reshape(x, (4, 22, *x.shape[1:])), inputs["rows"])

    def steps(state, x):
        o, state = PRIMITIVES[name].step(x, inputs["shared"], state)
        return state, o

    by_token = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), by_row)
    want_state, want = jax.jit(functools.partial(jax.lax.scan, steps))(inputs["state"], by_token)
    want, state, parts = np.swapaxes(want, 0, 1), inputs["state"], []
    for part in (slice(0, cut), slice(cut, 22)):
        rows = jax.tree.map(lambda x: x[:, part].reshape(-1, *x.shape[2:]), by_row)  # noqa: B023
        layout = Layout((rows["q"].shape[0] // 4,) * len(lengths), 8)
        o, state = values(name, "xla", layout, None, inputs | {"rows": rows, "state": state})
        parts.append(np.reshape(o, (4, -1, *o.shape[1:])))
    assert_close((np.concatenate(parts, 1), state), (want, want_state), TOLERANCE)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_documents_are_sequences_of_their_own(name):
    """Documents in one segment give what segments of their own give from states of zeros, or from no state at all."""
    lengths = (11, 1, 20, 5)
    inputs = example(name, sum(lengths), len(lengths))
    zeros = jax.tree.map(np.zeros_like, inputs["state"])
    together = Layout((sum(lengths),), 8)
    got, nothing = values(name, "xla", together, tuple(np.cumsum(lengths[:-1])), inputs | {"state": None})
    want, _ = values(name, "xla", Layout(lengths, 8), None, inputs | {"state": zeros})
    assert nothing is None
    assert_close(got, want, TOLERANCE)


@pytest.mark.parametrize("name", ["vector decay", "ttt"])
def test_no_state_is_a_state_of_zeros(name):
    """The reference form without a state."""
    layout, inputs = Layout((17, 0, 9), 16), example(name, 26, 3)
    zeros = jax.tree.map(np.zeros_like, inputs["state"])
    (got, nothing), (want, _) = (values(name, "reference", layout, (20,), inputs | {"state": x}) for x in (None, zeros))
    assert nothing is None
    assert_close(got, want, 1e-6)


def test_long_sequence():
    """1e4 tokens, with slow decay and with decay that underflows within a chunk, neither overflow nor lose digits."""
    tokens = 10_000
    gates = lambda g: np.where(np.arange(tokens)[:, None, None] % 1000 < 500, 1e-3 * g, 30 * g)  # noqa: E731
    inputs = example("vector decay", tokens, 1, (4, 4), g=gates)
    function = lambda impl: functools.partial(outputs, PRIMITIVES["vector decay"], impl, Layout((tokens,), 64), None)  # noqa: E731
    got, want = (optimised(functools.partial(with_gradients, function(impl)))(inputs) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [name for name in PRIMITIVES if "beta" in PRIMITIVES[name].rows])
def test_keys_of_one_direction(name, direction):
    """What makes a chunk's inverse large costs no digits, beside the recurrence token by token in float64."""
    inputs, lengths = example(name, 40, 1, **DIRECTIONS[direction]), (40,)
    run = functools.partial(outputs, PRIMITIVES[name], "reference", Layout(lengths, 16), None)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64), inputs)
        want = jax.device_get(jax.jit(functools.partial(with_gradients, run))(wide))
    # what a decay for each channel loses in float32 where the state turns round at every token: 1e-5
    tolerance = 2e-5 if (name, direction) == ("kda", "equal, strength 2") else TOLERANCE
    assert_close(measured(name, "xla", inputs, lengths, chunk=16), want, tolerance)


@pytest.mark.parametrize("name", ["delta rule", "scalar decay", "kda"])
def test_sizes_of_models(name):
    """K = V = 64 in chunks of 64 rows, segments that are no multiple of it, a document inside."""
    inputs = example(name, 134, 3, (64, 64))
    got, want = (measured(name, impl, inputs, (70, 0, 64), (40,), 64, optimised) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_bfloat16(name):
    """bfloat16 rows: outputs in the dtype of the values, within 2^-7 of float32; state float32; gradients as inputs."""
    layout, inputs = Layout(RAGGED, 8), ragged(name)
    half = inputs | {"rows": {n: x.astype(jnp.bfloat16) if n in "qkv" else x for n, x in inputs["rows"].items()}}
    o, state = values(name, "xla", layout, DOCUMENTS, half)
    rounded = jax.tree.map(lambda x: x.astype(np.float32), half)
    want, want_state = measured(name, "reference", rounded, RAGGED, DOCUMENTS)[0]
    written = jax.eval_shape(lambda: PRIMITIVES[name].packed(half["rows"], half["shared"]).v)
    assert o.dtype == written.dtype and all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
    assert_close(o.astype(jnp.float32), want, 2**-7)
    assert_close(state, want_state, TOLERANCE)
    run = functools.partial(outputs, PRIMITIVES[name], "xla", layout, DOCUMENTS)
    gradients = jax.eval_shape(functools.partial(with_gradients, run), half)[1]
    assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, half)


@pytest.mark.parametrize("name", ["delta rule", "vector decay"])
def test_vmap_and_checkpoint(name):
    """A leading axis by vmap, and rematerialisation, change neither values nor gradients."""
    several = [ragged(name, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *several)
    function = jax.checkpoint(functools.partial(outputs, PRIMITIVES[name], "xla", Layout(RAGGED, 8), DOCUMENTS))
    got = jax.jit(jax.vmap(functools.partial(with_gradients, function)))(stacked)
    want = [measured(name, "xla", inputs, RAGGED, DOCUMENTS) for inputs in several]
    assert_close(got, jax.tree.map(lambda *x: np.stack(x), *want), TOLERANCE)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_unknown_implementation(name):
    """The message names those that exist."""
    run = functools.partial(outputs, PRIMITIVES[name], "cuda", Layout((3,), 16), None)
    with pytest.raises(InputError, match=r"impl=cuda: choose one of auto, reference, xla"):
        jax.eval_shape(run, example(name, 3, 1))


@pytest.mark.parametrize("name", ["delta rule", "scalar decay", "vector decay"])
def test_scale(name):
    """``scale`` replaces K^-0.5."""
    layout, inputs = Layout((9,), 16), example(name, 9, 1)
    rows = jax.tree.map(layout.pack, inputs["rows"])
    run = jax.jit(functools.partial(PRIMITIVES[name].run, rows, {}, layout.table(), None), static_argnames="scale")
    assert_close(run(scale=1.0)[0], run()[0] * 8**0.5, 1e-6)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_double_precision(name):
    """With 64-bit types: float32 rows trace with gradients, and float64 rows are computed in float64."""
    layout, inputs = Layout((9, 5), 8), example(name, 14, 2)
    run = lambda impl: functools.partial(outputs, PRIMITIVES[name], impl, layout, (6,))  # noqa: E731
    with jax.enable_x64(True):
        for impl in ("xla", "reference"):
            (_, state), gradients = jax.eval_shape(functools.partial(with_gradients, run(impl)), inputs)
            assert {x.dtype for x in jax.tree.leaves((state, gradients))} == {np.dtype(np.float32)}
        wide = jax.tree.map(lambda x: x.astype(np.float64), inputs)
        got, want = (jax.device_get(jax.jit(run(impl))(wide)) for impl in ("xla", "reference"))
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(np.float64)}
    assert_close(got, want, 1e-12)
