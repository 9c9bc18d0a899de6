"""Every memory rule learns: its smallest preset, made smaller, in fifty steps on one sentence, over and over.

The steps are one program, which costs less than the whole training step of each rule; that one is tested elsewhere.
Memories are routed and keys filtered in two of them: that is code of all rules, and more of it than of any one.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from support.cases import some

from mom_jax.models.config import MEMORY_RULES
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.presets import get_preset

STEPS, ROWS, TIME = 50, 2, 32
SENTENCE = np.frombuffer(b"to be or not to be, that is the question. ", np.uint8).astype(np.int32)
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 8, "intermediate_size": 64, "num_slots": 8}
# of rules whose defaults are for longer texts
OPTIONS = {
    "sparse_delta_memory": ("table_slots=64", "slot_writes=4", "slot_reads=4"),
    "log_linear_mamba2": ("log_linear_levels=7",),
    "log_linear_gla": ("log_linear_levels=7",),
}


WHOLE = ("gated_deltanet", "rwkv7")  # with convolutions, with token shift
FIRST = ("gated_deltanet", "gla")  # with all parts, and without


@pytest.mark.parametrize("rule", some(MEMORY_RULES, FIRST))
def test_fifty_steps(rule):
    """The loss is finite at every step, and falls far below that of the bytes' frequencies."""
    preset = "mom-tiny" if rule == "gated_deltanet" else f"mom-tiny-{rule.replace('_', '-')}"
    parts = {} if rule in WHOLE else {"mixture": False, "use_short_conv": False, "intermediate_size": 0}
    config = dataclasses.replace(get_preset(preset), **SMALL | parts, rule_options=OPTIONS.get(rule, ()))
    assert config.memory_rule == rule
    adam = optax.adam(2e-2)
    # not inside of the program: what draws an array of one shape is then compiled once for all rules
    graph, params = nnx.split(MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    flat, unravel = ravel_pytree(params)
    starts = np.random.default_rng(0).integers(0, len(SENTENCE), (STEPS, ROWS, 1))
    batches = SENTENCE[(starts + np.arange(TIME + 1)) % len(SENTENCE)]

    @jax.jit
    def losses_of_steps(flat):
        def loss(flat, ids):
            logits = nnx.merge(graph, unravel(flat))(ids[:, :-1]).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

        def step(state, ids):
            flat, moments = state
            value, gradients = jax.value_and_grad(loss)(flat, ids)
            updates, moments = adam.update(gradients, moments)
            return (flat + updates, moments), value

        return jax.lax.scan(step, (flat, adam.init(flat)), batches)[1]

    losses = np.asarray(losses_of_steps(flat))
    share = np.unique(SENTENCE, return_counts=True)[1] / len(SENTENCE)
    entropy = -(share * np.log(share)).sum()
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * entropy < losses[0], losses
