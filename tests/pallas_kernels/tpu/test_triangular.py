"""The triangular inverse of the TPU kernels, as plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import relative_error

from pallas_kernels.tpu.triangular import unit_lower_inverse

STRICT = {
    "random": lambda r, n: 0.2 * r.normal(size=(2, n, n)),
    "equal keys, strength 2": lambda r, n: np.full((2, n, n), 2.0),
    "near-duplicate keys": lambda r, n: 0.98 * (1 - 4e-4 * r.random((2, n, n))),
}


@pytest.mark.parametrize("exact, tolerance", [(True, 1e-5), (False, 1e-4)])
@pytest.mark.parametrize("size", [16, 128])
def test_inverse(size, exact, tolerance):
    """Against NumPy in float64, where a doubling series would overflow too; zeros above the diagonal stay zeros."""
    for name, draw in STRICT.items():
        strict = np.tril(draw(np.random.default_rng(0), size), -1).astype(np.float32)
        got = jax.jit(unit_lower_inverse, static_argnums=1)(jnp.asarray(strict), exact)
        want = np.linalg.inv(np.eye(size) + strict.astype(np.float64))
        assert relative_error(got, want) < tolerance, name
        np.testing.assert_array_equal(np.triu(got, 1), 0)
