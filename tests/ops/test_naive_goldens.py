"""The reference's recurrences, token by token, as stored in `tests/goldens/op_naive_*.npz`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.stored_operators import RULES, misplaced_division, run_stored

from mom_jax.ops.fast_weights import normalised_gradient
from mom_jax.ops.norm import layer_norm

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", RULES)
def test_naive_recurrence(name):
    """Values, states and gradients: everything within 1e-5 of the largest value of its array.

    In chunks; that chunks equal tokens is tested for every recurrence in `test_recurrences.py`.
    """
    assert_close(*run_stored(name, "xla"), TOLERANCE)


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
