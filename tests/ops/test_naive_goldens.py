"""The reference's recurrences, as stored in `tests/goldens/op_*.npz`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.read import load, under
from support.compare import assert_close
from support.packed import Layout
from support.stored_operators import RULES, delta, differentiated, misplaced_division, run_stored

from mom_jax.ops.fast_weights import normalised_gradient
from mom_jax.ops.norm import l2_norm, layer_norm

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", RULES)
def test_naive_recurrence(name):
    """Values, states and gradients: everything within 1e-5 of the largest value of its array.

    In chunks; that chunks equal tokens is tested for every recurrence in `test_recurrences.py`.
    """
    assert_close(*run_stored(name, "xla"), TOLERANCE)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_ragged_segments(impl):
    """The gated delta rule over segments of 3, 64, 1, 70 and 17 tokens with incoming states, which lie value-first."""
    stored = load("op_gdr_varlen")
    layout = Layout(tuple(np.diff(stored["in/cu_seqlens"]).tolist()), 64)
    ours = lambda name, x: x.swapaxes(-1, -2) if name == "initial_state" else x[0]  # noqa: E731
    want = {name: ours(name, x) for name, x in under(stored, "grad").items()}

    def rule(inputs):
        x = inputs | {name: l2_norm(inputs[name]) for name in "qk"}
        packed = {name: layout.pack(x[name]) for name in x.keys() - {"initial_state"}}
        o, state = delta(x | packed, layout.table(), impl)
        return o[layout.index], state

    cotangents = stored["in/do"][0], stored["in/dht"].swapaxes(-1, -2)
    got = differentiated(rule, {name: ours(name, stored[f"in/{name}"]) for name in want}, cotangents)
    assert_close(got, ((stored["out/o"][0], stored["out/state"].swapaxes(-1, -2)), want), TOLERANCE)


def test_the_inner_gradient_is_the_gradient():
    """Ours is that of half the squared error of the normalised prediction; the reference's is far off."""
    rng = np.random.default_rng(0)
    prediction, target, weight, bias = jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.float32)

    def loss(prediction):
        return jnp.sum((layer_norm(prediction, weight, bias, 1e-6) - target) ** 2) / 2

    want = jax.grad(loss)(prediction)
    assert_close(normalised_gradient(prediction, target, weight, bias), want, TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close(misplaced_division(prediction, target, weight, bias), want, 0.5)
