"""The gated delta rule: token by token = chunk by chunk = single steps = a float64 loop over single segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.delta_rule import CASES, NAMES, case, cotangents_of, example, expected, with_gradients
from support.packed import Layout

from mom_jax.errors import InputError
from mom_jax.ops.delta_rule import delta_rule_step, gated_delta_rule

TOLERANCE = 1e-5  # of the largest value of each array, in float32


def rule(impl, layout, resets, inputs):
    """Outputs of the tokens and final states."""
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    o, final = gated_delta_rule(q, k, v, g, beta, layout.table(resets), inputs["state"], impl=impl)
    return o[layout.index], final


def measured(impl, chunk, inputs, lengths, resets):
    """The same of an implementation."""
    function = functools.partial(rule, impl, Layout(tuple(lengths), chunk), resets or None)
    return jax.jit(functools.partial(with_gradients, function))(inputs, cotangents_of(inputs))


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("name", CASES)
def test_values_states_and_gradients(name, impl):
    """Everything within 1e-5 of the float64 loop, over empty and one-token segments, documents and extremes."""
    inputs, lengths, resets, want = case(name)
    got = measured(impl, 16, inputs, lengths, resets)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    if name in ("ragged", "documents"):
        np.testing.assert_array_equal(got[0][1][1], inputs["state"][1])  # an empty segment keeps its state
        np.testing.assert_array_equal(got[1]["state"][1], cotangents_of(inputs)[1][1])  # and passes its gradient on
    # gradients of gates that decay to 0 are 0 in theory
    assert_close(got, want, TOLERANCE, atol=1e-6 if name == "total decay" else 0)


def test_one_chunk_sizes_of_the_models():
    """K = V = 64, C = 64, segments that are no multiple of it, a document inside."""
    lengths, resets = (70, 0, 130, 64), (100,)
    inputs = example(sum(lengths), len(lengths), (1, 64, 64))
    assert_close(measured("xla", 64, inputs, lengths, resets), expected(inputs, lengths, resets), TOLERANCE)


def test_long_sequence():
    """1024 tokens in one segment, with slow decay."""
    inputs = example(1024, 1, (1, 16, 16), g=lambda r, n, h, d: -0.01 * r.random((n, h)))
    assert_close(measured("xla", 64, inputs, (1024,), ()), expected(inputs, (1024,), ()), TOLERANCE)


def test_very_strong_decay_between_weak_ones():
    """A gate of -1e4 among gates near 0 gives no NaN, and forgets: later tokens see what came after it alone."""
    g = lambda r, n, h, d: np.where(np.arange(n)[:, None] == 9, -1e4, -0.05) * np.ones((n, h))  # noqa: E731
    inputs = example(30, 1, g=g)
    got = measured("xla", 16, inputs, (30,), ())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert_close(got[0], expected(inputs, (30,), ())[0], TOLERANCE)


def test_repeated_steps_equal_the_chunks():
    """`delta_rule_step` over four rows at once, token by token."""
    inputs = example(4 * 21, 4)
    outputs, state = [], inputs["state"]
    step = jax.jit(functools.partial(delta_rule_step, scale=8**-0.5))
    by_token = {name: inputs[name].reshape(4, 21, *inputs[name].shape[1:]) for name in NAMES[:-1]}
    for t in range(21):
        o, state = step(*(by_token[name][:, t] for name in NAMES[:-1]), state)
        outputs.append(o)
    want = jax.jit(functools.partial(rule, "xla", Layout((21,) * 4, 16), None))(inputs)
    assert_close((jnp.stack(outputs, 1).reshape(want[0].shape), state), want, TOLERANCE)


def test_hand_over():
    """Two calls joined by the state equal one: values, and gradients through the border."""
    inputs = example(50, 1)
    cotangents = cotangents_of(inputs)

    def two(inputs):
        outputs, state = [], inputs["state"]
        for begin, end in ((0, 19), (19, 50)):
            part = {name: inputs[name][begin:end] for name in NAMES[:-1]} | {"state": state}
            o, state = rule("xla", Layout((end - begin,), 16), None, part)
            outputs.append(o)
        return jnp.concatenate(outputs), state

    got = jax.jit(functools.partial(with_gradients, two))(inputs, cotangents)
    assert_close(got, measured("xla", 16, inputs, (50,), ()), TOLERANCE)


def test_vmap_and_checkpoint():
    """A leading axis by vmap, and rematerialisation, change neither values nor gradients."""
    lengths = (17, 0, 9)
    several = [example(26, 3, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    cotangents = cotangents_of(several[0])
    function = jax.checkpoint(functools.partial(rule, "xla", Layout(lengths, 16), (20,)))
    got = jax.jit(jax.vmap(lambda x: with_gradients(function, x, cotangents)))(stacked)
    for i, inputs in enumerate(several):
        assert_close(jax.tree.map(lambda x: x[i], got), measured("xla", 16, inputs, lengths, (20,)), TOLERANCE)  # noqa: B023


def test_bfloat16():
    """bfloat16 inputs: outputs bfloat16 within 2^-7 of the same inputs in float32, state float32."""
    lengths = (33, 5)
    inputs = example(38, 2)
    half = {name: x.astype(jnp.bfloat16) if name in "qkv" else x for name, x in inputs.items()}
    o, state = rule("xla", Layout(lengths, 16), None, half)
    want, want_state = rule("reference", Layout(lengths, 16), None, jax.tree.map(lambda x: x.astype(jnp.float32), half))
    assert state is not None and o.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert_close(o, want, 2**-7)
    assert_close(state, want_state, TOLERANCE)
    gradients = jax.grad(lambda x: rule("xla", Layout(lengths, 16), None, x)[0].astype(jnp.float32).sum())(half)
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in half.items()}
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in gradients.values())


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_no_state_is_a_state_of_zeros(impl):
    """Without an initial state segments begin empty and no state returns: outputs and gradients are those of zeros."""
    lengths, resets = (17, 0, 9), (20,)
    layout, inputs = Layout(lengths, 16), example(26, 3)
    cotangent = cotangents_of(inputs)[0]

    def outputs(state, x):
        q, k, v, g, beta = (layout.pack(x[name]) for name in NAMES[:-1])
        o, final = gated_delta_rule(q, k, v, g, beta, layout.table(resets), state, impl=impl)
        assert (final is None) == (state is None)
        return o[layout.index]

    zeros = jnp.zeros_like(inputs.pop("state"))
    run = lambda state: jax.jit(lambda x: with_gradients(functools.partial(outputs, state), x, cotangent))(inputs)  # noqa: E731
    assert_close(run(None), run(zeros), 1e-6)


def test_scale():
    """``scale`` replaces K^-0.5."""
    layout, inputs = Layout((9,), 16), example(9, 1)
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    o, _ = gated_delta_rule(q, k, v, g, beta, layout.table(), inputs["state"], scale=1.0)
    want, _ = gated_delta_rule(q, k, v, g, beta, layout.table(), inputs["state"])
    assert_close(o, want * 8**0.5, 1e-6)


def test_unknown_implementation():
    """The message names those that exist."""
    layout, inputs = Layout((3,), 16), example(3, 1)
    q, k, v, g, beta = (layout.pack(inputs[name]) for name in NAMES[:-1])
    with pytest.raises(InputError, match=r"impl=cuda: choose one of auto, reference, xla"):
        gated_delta_rule(q, k, v, g, beta, layout.table(), impl="cuda")
