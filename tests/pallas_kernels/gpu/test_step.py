"""One token in place, in Triton's interpreter, against the recurrences' own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.primitives import PRIMITIVES

from pallas_kernels.chunks import Unsupported
from pallas_kernels.gpu.step import step

STEPPED = [name for name, case in PRIMITIVES.items() if case.primitive.transition]
PLACE = np.array([5, 0, -1, 3], np.int32)


def example(name):
    """Four rows, six states of which three are named, and what the step makes of those."""
    case, inputs = PRIMITIVES[name], PRIMITIVES[name].example(4, 6, (16, 32))
    known = np.flatnonzero(PLACE >= 0)
    before = np.where((PLACE < 0)[:, None, None, None], 0, inputs["state"][PLACE])
    o, after = case.step(inputs["rows"], inputs["shared"], jnp.asarray(before))
    states = inputs["state"].copy()
    states[PLACE[known]] = np.asarray(after)[known]
    token = case.primitive.transition(case.packed(inputs["rows"], inputs["shared"]))
    return token, jnp.asarray(inputs["state"]), o, states


def run(token, states):
    """The kernel."""
    return step(*token, jnp.asarray(PLACE), states, 16**-0.5, interpret=True)


@pytest.mark.parametrize("name", STEPPED)
def test_equals_the_step(name):
    """Outputs of all rows, states that are named; the others, and those of a row without one, are untouched."""
    token, states, *want = example(name)
    assert_close(run(token, states), tuple(want), 1e-6)


@pytest.mark.parametrize("name", ["delta rule", "scalar decay"])
def test_states_in_bfloat16(name):
    """They are computed with in float32 and rounded once: as float32 states of the same numbers, rounded after."""
    token, states, *_ = example(name)
    narrow = states.astype(jnp.bfloat16)
    o, after = run(token, narrow)
    want = run(token, narrow.astype(jnp.float32))
    assert after.dtype == jnp.bfloat16
    np.testing.assert_array_equal(o, want[0])
    np.testing.assert_array_equal(after, want[1].astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["delta rule", "vector decay"])
def test_gradients(name):
    """Of rows and states, as the step's own."""
    token, states, *_ = example(name)
    rng = np.random.default_rng(1)
    do, dstates = (jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in (token.v, states))

    def plain(token, states):
        own = jnp.where((PLACE < 0)[:, None, None, None], 0, states[PLACE])
        o = jnp.einsum("nhkv,nhk->nhv", own, token.r) + jnp.sum(token.q * token.k, -1, keepdims=True) * token.v
        new = token.kept[..., None] * own + token.k[..., None] * token.v[..., None, :]
        if token.a is not None:
            u = jnp.einsum("nhkv,nhk->nhv", own, token.a)
            o, new = o + jnp.sum(token.q * token.b, -1, keepdims=True) * u, new + token.b[..., None] * u[..., None, :]
        known = np.flatnonzero(PLACE >= 0)
        return o * 16**-0.5, states.at[PLACE[known]].set(new[known])

    got, want = (jax.vjp(function, token, states)[1]((do, dstates)) for function in (run, plain))
    assert_close(got, want, 1e-5)


def test_sizes():
    """K is one of those that kernels are made for."""
    token, *_ = example("delta rule")
    wide = {name: jnp.zeros((4, 2, 24)) for name in ("r", "q", "k", "kept", "a", "b")}
    with pytest.raises(Unsupported, match="K=24: the GPU kernels take 16, 32, 64, 128, 256"):
        run(token._replace(**wide), jnp.zeros((6, 2, 24, 32)))
