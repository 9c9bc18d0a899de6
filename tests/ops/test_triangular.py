"""Inverses of unit lower triangular matrices against float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.triangular import unit_lower_inverse


def strict_lower(kind, size, rng):
    """What the delta rule inverts: ``beta k_t.k_i`` below the diagonal, for unlike and for correlated keys."""
    spread = {"random": 1.0, "correlated": 0.05, "equal": 0.0}[kind]
    keys = 1.0 * (kind != "random") + spread * rng.normal(size=(3, size, 32))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(1.9 * keys @ keys.swapaxes(-1, -2), -1)


@pytest.mark.parametrize("kind", ["random", "correlated", "equal"])
@pytest.mark.parametrize("size", [1, 2, 8, 16, 64, 128])
def test_against_numpy(size, kind):
    """Batched, at strength 1.9: within 1e-5 of the largest value, 3e-5 where keys are alike."""
    strict = strict_lower(kind, size, np.random.default_rng(size)).astype(np.float32)
    want = np.linalg.inv(np.eye(size) + strict.astype(np.float64))
    assert_close(unit_lower_inverse(jnp.asarray(strict)), want, 1e-5 if kind == "random" else 3e-5)
