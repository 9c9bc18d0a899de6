"""Costs against hand counts of small models, the arrays that exist, and XLA's own count of FLOPs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.models.accounting import account, total
from mom_jax.models.baselines import BASELINES, get_baseline
from mom_jax.models.config import MEMORY_RULES, AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.presets import get_preset
from mom_jax.ops.delta_rule import DELTA_RULE

D, H, K, V, M, W, WIDE, VOCAB = 16, 2, 8, 12, 4, 4, 24, 32
CONFIG = MoMConfig(vocab_size=VOCAB, hidden_size=D, num_hidden_layers=2, num_heads=H, head_dim=K, expand_v=1.5,
                   intermediate_size=WIDE)  # fmt: skip


BARE = dataclasses.replace(CONFIG, shared_mem=False, use_output_gate=False, use_short_conv=False)
KINDS = {"mixture": CONFIG, "bare": BARE} | {name: get_baseline(name, CONFIG) for name in BASELINES}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_parameters_and_state_that_exist(config):
    """Sums over parts equal the sizes of a model's parameters and of its cache."""
    model = nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    costs = total(account(config, 100))
    assert costs.parameters == sum(leaf.get_value().size for _, leaf in nnx.to_flat_state(nnx.state(model)))
    cache = jax.eval_shape(lambda: model.init_cache(1, 100))
    assert costs.state_bytes == sum(leaf.size * 4 for leaf in jax.tree.leaves(cache))


def test_a_memory_layer_by_hand():
    """Every matrix, filter and recurrence of one layer with two of four memories and the shared one."""
    layer = account(CONFIG, 100)[1]
    one_memory = D * (H * K + H * V + 2 * H)
    shared_by_all = D * M + D * H * K + 2 * H + W * (2 * H * K + H * V) + 2 * D * H * V + V + 2 * D + 3 * D * WIDE
    assert layer.parameters == shared_by_all + 5 * one_memory
    assert layer.activated == shared_by_all + 3 * one_memory
    assert total(account(CONFIG, 100)).parameters == 2 * layer.parameters + D + 2 * VOCAB * D
    left_out = one_memory + D * H * V + W * (2 * H * K + H * V)
    assert account(BARE, 100)[1].parameters == layer.parameters - left_out
    vectors = 2 * H + V + 2 * D
    filters = W * (2 * H * K + H * V)
    products = 2 * (shared_by_all - vectors - filters + 3 * one_memory + 3 * filters)
    forward, backward = DELTA_RULE.flops(32, K, V)
    assert layer.forward == pytest.approx(products + 3 * H * forward)
    assert layer.backward == pytest.approx(2 * products + 3 * H * backward)
    assert layer.state_bytes == 4 * 5 * (H * K * V + (W - 1) * (2 * H * K + H * V)) + 8


def test_one_projection_for_all_memories():
    """It is stored once and a token goes through it once; its convolutions and recurrences stay three."""
    many, one = (account(dataclasses.replace(CONFIG, single_kv_proj=flag), 100)[1] for flag in (False, True))
    one_memory = D * (H * K + H * V + 2 * H)
    assert many.parameters - one.parameters == 4 * one_memory and many.activated - one.activated == 2 * one_memory
    assert many.forward - one.forward == pytest.approx(2 * 2 * one_memory)


@pytest.mark.parametrize("window,seen", [(None, 5.5), (4, 3.4), (100, 5.5)])
def test_attention_by_hand(window, seen):
    """Keys that a query sees on average in ten tokens: (1 + ... + 10) / 10, or at most four each."""
    attn = AttentionConfig(layers=(0, 1), num_heads=2, num_kv_heads=1, window_size=window)
    layer = account(dataclasses.replace(CONFIG, attn=attn), 10)[1]
    matrices = D * D + 2 * D * D // 2 + D * D + 3 * D * WIDE
    assert layer.parameters == layer.activated == matrices + 2 * D
    assert layer.forward == pytest.approx(2 * matrices + 4 * D * seen)
    slots = min(window or 10, 100)
    assert layer.state_bytes == 4 * (slots * (2 * D // 2 + 1) + 2)


def counted_flops(config, time):
    """XLA's count for one token of a forward pass over one row."""
    graph, params = nnx.split(nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0))))
    run = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids).logits)
    analysis: Any = run.lower(params, jax.ShapeDtypeStruct((1, time), jnp.int32)).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"] / time


def one_layer(**changes):
    """One layer of one head over one chunk, where XLA's count holds no unknown number of loop turns."""
    return dataclasses.replace(CONFIG, hidden_size=128, num_heads=1, head_dim=128, expand_v=1.0, num_hidden_layers=1,
                               intermediate_size=256, vocab_size=256, **changes)  # fmt: skip


@pytest.mark.parametrize("name", ["single", "transformer"])
def test_forward_flops_as_xla_counts_them(name):
    """Within 5 %; XLA also counts what is linear in the channels."""
    config, time = get_baseline(name, one_layer()), 64
    # XLA computes all of the T x T scores, we count the causal half
    extra = 4 * 128 * (time - (time + 1) / 2) if name == "transformer" else 0
    assert counted_flops(config, time) == pytest.approx(total(account(config, time)).forward + extra, rel=0.05)


@pytest.mark.parametrize("rule", ["mamba2", "gla", "rwkv7", "gsa", "ttt", "titans"])
def test_forward_flops_of_every_recurrence(rule):
    """Within 10 %: decays for each channel are linear in the channels, but many."""
    config = one_layer(memory_rule=rule, mixture=False, mini_batch_size=64)
    assert counted_flops(config, 64) == pytest.approx(total(account(config, 64)).forward, rel=0.1)


def test_baselines_of_a_preset():
    """What their names say: state of one memory, of what a token reads, of all memories."""
    config = get_preset("mom-340m")
    states = {name: get_baseline(name, config).head_v_dim for name in ("single", "equal-active", "expanded")}
    assert states == {"single": 256, "equal-active": 3 * 256, "expanded": 5 * 256}
    assert get_baseline("transformer", config).attn.num_heads == 16
    with pytest.raises(InputError, match=r"baseline=rnn: choose one of single"):
        get_baseline("rnn", config)


@pytest.mark.parametrize("rule", MEMORY_RULES)
def test_equal_state_of_every_rule(rule):
    """The expanded baseline has the state of all memories, but for filters' inputs and counts, which do not grow so."""
    config = dataclasses.replace(CONFIG, memory_rule=rule, expand_v=1.0, use_short_conv=False)
    mixture, expanded = (
        nnx.eval_shape(lambda c=c: MoMForCausalLM(c, rngs=nnx.Rngs(0)).init_cache(1).memory.recurrent)
        for c in (config, get_baseline("expanded", config))
    )
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 3) for state in (mixture, expanded)]
    if rule in ("gsa", "raven", "mesanet", "mamba3"):  # parts of their states, [K, M] or [K, K], are as wide as before
        assert sizes[0] > sizes[1] > sizes[0] / 2
    else:
        assert sizes[0] == sizes[1]
