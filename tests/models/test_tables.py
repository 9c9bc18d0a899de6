"""Tables of embeddings and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax.models.tables import looked_up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_token_that_occurs_often_lose_nothing(dtype):
    """Ones summed one after the other in bfloat16 end at 256."""
    table, ids = jnp.ones((3, 2), dtype), jnp.zeros((1, 4097), jnp.int32).at[0, 7].set(2)
    found = jax.grad(lambda table: looked_up(table, ids, "bfloat16").astype(jnp.float32).sum())(table)
    assert found.dtype == table.dtype
    np.testing.assert_array_equal(found.astype(jnp.float32), [[4096, 4096], [0, 0], [1, 1]])


def test_gradients_in_float64():
    """What float32 would round away."""
    with jax.enable_x64(True):
        table, ids = jnp.ones((2, 1), jnp.float64), jnp.array([[0, 0, 1]])
        found = jax.grad(lambda table: (looked_up(table, ids, "float64")[..., 0] * jnp.array([1, 2**-40, 1])).sum())(
            table
        )
    np.testing.assert_array_equal(found, [[1 + 2**-40], [1]])
