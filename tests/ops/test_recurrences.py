"""Every recurrence: chunks = single tokens = single steps. The numbers of the reference: `test_naive_goldens.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.compiled import jit
from support.packed import Layout
from support.primitives import PRIMITIVES

TOLERANCE = 1e-5  # of the largest value of each array, in float32
RAGGED = (17, 0, 1, 16, 33, 1, 2, 0)
DOCUMENTS = (0, 5, 16, 17, 18, 40, 41, 66, 68)
GATED = [name for name, primitive in PRIMITIVES.items() if primitive.gates]


def outputs(primitive, impl, layout, resets, inputs):
    """Outputs of the tokens, and final states."""
    rows = jax.tree.map(layout.pack, inputs["rows"])
    o, final = primitive.run(rows, inputs["shared"], layout.table(resets), inputs["state"], impl)
    return o[layout.index], final


def with_gradients(function, inputs):
    """Outputs of ``function`` and its gradients, for fixed random cotangents."""
    values, pull = jax.vjp(function, inputs)
    rng = np.random.default_rng(99)
    return values, pull(jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), values))[0]


def measured(name, impl, inputs, lengths, resets=None, chunk=16):
    """Outputs, final states and gradients."""
    function = functools.partial(outputs, PRIMITIVES[name], impl, Layout(tuple(lengths), chunk), resets)
    return jit(functools.partial(with_gradients, function))(inputs)


@pytest.mark.parametrize("resets", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_chunks_equal_tokens(name, resets):
    """Values, states and gradients over empty, one-token and ragged segments; empty ones keep their state."""
    inputs = PRIMITIVES[name].example(sum(RAGGED), len(RAGGED))
    got, want = (measured(name, impl, inputs, RAGGED, resets) for impl in ("xla", "reference"))
    assert_close(got, want, TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), got[0][1], inputs["state"])
