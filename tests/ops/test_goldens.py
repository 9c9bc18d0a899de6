"""The gated delta rule against the reference's recurrences."""

import jax
import numpy as np
import pytest
from goldens.read import load, under
from support.compare import assert_close
from support.packed import Layout

from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.norm import l2_norm

IMPLEMENTATIONS = ("reference", "xla")
NAMES = ("q", "k", "v", "g", "beta", "initial_state")


def differentiate(layout, impl, inputs, do, dstate):
    """Outputs, final states, and the gradients of all inputs [tokens, ...]."""
    table = layout.table()

    def rule(inputs):
        x = dict(inputs, q=l2_norm(inputs["q"]), k=l2_norm(inputs["k"]))
        rows = DeltaRuleRows(**{name: layout.pack(x[name]) for name in NAMES[:-1]})
        o, state = DELTA_RULE(rows, table, x["initial_state"], impl=impl)
        return o[layout.index], state

    @jax.jit
    def run(inputs, do, dstate):
        outputs, pull = jax.vjp(rule, inputs)
        return outputs, pull((do, dstate))[0]

    return run(inputs, do, dstate)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ragged_segments(impl):
    """Segments of 3, 64, 1, 70 and 17 tokens with incoming states: values and all gradients within 1e-5."""
    stored = load("op_gdr_varlen")
    lengths = tuple(int(n) for n in np.diff(stored["in/cu_seqlens"]))
    inputs = under(stored, "in")
    state = inputs["initial_state"].swapaxes(-1, -2)  # stored value-first
    inputs = {**{name: inputs[name][0] for name in NAMES[:-1]}, "initial_state": state}
    dstate = stored["in/dht"].swapaxes(-1, -2)
    got = differentiate(Layout(lengths, 64), impl, inputs, stored["in/do"][0], dstate)
    gradients = under(stored, "grad")
    dinitial = gradients.pop("initial_state").swapaxes(-1, -2)
    want = {**{name: x[0] for name, x in gradients.items()}, "initial_state": dinitial}
    assert_close(got, ((stored["out/o"][0], stored["out/state"].swapaxes(-1, -2)), want), 1e-5)
