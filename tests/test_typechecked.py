"""The suite checks annotations: shapes and dtypes of arguments, of the fields of what is passed, and of results."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from support.packed import Layout

from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.routing import route
from mom_jax.ops.segments import pack
from mom_jax.ops.short_conv import short_conv


def rows(**changes) -> DeltaRuleRows:
    """Rows of the delta rule: N = 3, H = 2, K = 4, V = 5."""
    shapes = {"q": (3, 2, 4), "k": (3, 2, 4), "v": (3, 2, 5), "g": (3, 2), "beta": (3, 2)} | changes
    return DeltaRuleRows(**{name: jnp.zeros(shape) for name, shape in shapes.items()})


STATE = jnp.zeros((3, 2, 4, 5))


def test_what_fits_passes():
    """The examples below are wrong in what they are said to be wrong in, and in nothing else."""
    assert DELTA_RULE.step(rows(), STATE, 1)[0].shape == (3, 2, 5)


WRONG = {
    "a dtype": lambda: route(jnp.zeros((1, 2, 3), jnp.int32), 2),
    "a number of axes": lambda: DELTA_RULE.step(rows(), STATE[0], 1.0),
    "two arguments that differ": lambda: DELTA_RULE.step(rows(), STATE[:, :, :3], 1.0),
    "no array": lambda: DELTA_RULE.step(rows(), STATE.tolist(), 1.0),
    "a field's number of axes": lambda: DELTA_RULE.step(rows(g=(3, 2, 1)), STATE, 1.0),
    "two fields that differ": lambda: DELTA_RULE.step(rows(beta=(3, 1)), STATE, 1.0),
    "a dataclass's field": lambda: pack(
        jnp.zeros((1, 5, 2)), dataclasses.replace(Layout((2, 3), 4).packing(), row=jnp.zeros((1, 4, 1), jnp.int32))
    ),
    "a size that follows from another": lambda: short_conv(
        jnp.zeros((12, 6)), jnp.zeros((6, 4)), Layout((2, 3), 4).packing(), jnp.zeros((2, 4, 6))
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call):
    """Also where the computation would broadcast without a word, and while it is traced."""
    with pytest.raises(TypeCheckError):
        call()
    with pytest.raises(TypeCheckError):
        jax.eval_shape(call)


def test_a_result_is_checked(monkeypatch):
    """What a function returns has the sizes that it was called with."""
    monkeypatch.setattr(jax.lax, "top_k", lambda x, k: (x, jnp.zeros(x.shape, jnp.int32)))
    with pytest.raises(TypeCheckError, match="return value"):
        route(jnp.zeros((1, 2, 3)), 2)
