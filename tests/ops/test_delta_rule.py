"""The gated delta rule: token by token = chunk by chunk = a float64 loop over single segments.

What holds for every recurrence: `test_recurrences.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.delta_rule import CASES, NAMES, case, cotangents_of, example, expected, with_gradients
from support.packed import Layout

from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows

TOLERANCE = 1e-5  # of the largest value of each array, in float32


def rule(impl, layout, resets, inputs):
    """Outputs of the tokens and final states."""
    rows = DeltaRuleRows(**{name: layout.pack(inputs[name]) for name in NAMES[:-1]})
    o, final = DELTA_RULE(rows, layout.table(resets), inputs["state"], impl=impl)
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
