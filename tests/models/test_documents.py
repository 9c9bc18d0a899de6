"""Documents of packed rows: runs of one number, the same for every kind of layer, with a cache and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.cases import some
from support.compare import assert_close
from support.dependence import allowed, dependence
from support.parameters import random_model

from mom_jax.models.config import AttentionConfig, MoMConfig

TIME = 11
NUMBERS = np.array([[1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1], [0, 0, 3, 3, 3, 3, 3, 0, 0, 3, 3]], np.int32)
RUNS = np.array([[0] * 4 + [1] * 2 + [2] * 5, [0] * 2 + [1] * 5 + [2] * 2 + [3] * 2])
MASK = np.ones((2, TIME), np.int32)
MASK[0, 0], MASK[1, [3, 4, 10]] = 0, 0
NUMBERS[MASK == 0] = 8  # padding's number does not matter
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_heads": 2, "head_dim": 8, "intermediate_size": 24}
KINDS = {
    "routed memories alone": {"num_memories": 6, "topk": 1, "shared_mem": False},
    "one memory with token shift": {
        "memory_rule": "rwkv7", "mixture": False, "gate_low_rank_dim": 5, "decay_low_rank_dim": 4, "a_low_rank_dim": 3
    },
    "hybrid": {"attn": AttentionConfig(layers=(1,), num_heads=2, window_size=None)},
    "hybrid with a window": {"attn": AttentionConfig(layers=(0,), num_heads=2, window_size=3)},
}  # fmt: skip


@functools.cache
def taken_apart(kind):
    """A model of two layers, and its compiled call: (ids, mask, numbers, cache) to logits and cache."""
    model = random_model(MoMConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64, **KINDS[kind]))
    graph, params = nnx.split(model)

    @jax.jit
    def run(params, ids, mask, numbers, cache):
        out = nnx.merge(graph, params)(ids, mask, numbers, cache)
        return out.logits, out.cache

    return model, functools.partial(run, params)


def tokens():
    """Random ids."""
    return np.random.default_rng(0).integers(0, 32, (2, TIME)).astype(np.int32)


@functools.cache
def alone(kind):
    """Logits of every document in a row of its own, without document numbers; 0 on padding."""
    model, run = taken_apart(kind)
    want = np.zeros((2, TIME, 32), np.float32)
    for document in range(4):
        mask = MASK * (document == RUNS)
        want += np.asarray(run(tokens(), mask, None, model.init_cache(2))[0]) * mask[..., None]
    return want


@pytest.mark.parametrize("kind", some(KINDS, ("routed memories alone", "hybrid with a window")))
def test_every_cut_equals_documents_alone(kind):
    """Two calls that are cut anywhere, inside documents and between them, padded to one length with other numbers."""
    model, run = taken_apart(kind)
    place = np.arange(TIME)
    for cut in range(TIME + 1):
        cache, got = model.init_cache(2), 0.0
        for now in (place < cut, place >= cut):
            logits, cache = run(tokens(), MASK * now, np.where(now, NUMBERS, 5), cache)
            got = got + np.asarray(logits) * (MASK * now)[..., None]
        assert_close(got, alone(kind), 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_numbers_the_document_goes_on(kind):
    """Steps: a token without a number continues its row's document, in layers that saw none of it yet too."""
    model, run = taken_apart(kind)
    cache, got = model.init_cache(2), []
    for t in range(TIME):
        now = slice(t, t + 1)
        begins = t < 2 or (RUNS[:, t] != RUNS[:, t - 1]).any()  # the first row's first token is padding
        logits, cache = run(tokens()[:, now], MASK[:, now], NUMBERS[:, now] if begins else None, cache)
        got.append(np.asarray(logits) * MASK[:, now, None])
    assert_close(np.concatenate(got, 1), alone(kind), 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_after_none(kind):
    """What was read without numbers has number 0: 0 goes on, another number begins anew."""
    model, run = taken_apart(kind)
    ids, place = tokens(), np.arange(TIME)
    begin, rest = ((place < 5) * np.ones((2, 1), np.int32), (place >= 5) * np.ones((2, 1), np.int32))
    _, cache = run(ids, begin, None, model.init_cache(2))
    got, _ = run(ids, rest, np.array([[0], [7]]) * np.ones(TIME, np.int32), cache)
    whole, _ = run(ids, begin + rest, None, model.init_cache(2))
    anew, _ = run(ids, rest, None, model.init_cache(2))
    assert np.abs(whole - anew)[:, 5:].max() > 1e-2
    assert_close(got[:, 5:], np.stack([whole[0, 5:], anew[1, 5:]]), 2e-5)


def test_gradients_stay_inside_a_document():
    """Exactly 0 from every other document, one of the same number included; not 0 from the tokens before."""
    model, _ = taken_apart("hybrid")  # single layers: `tests/layers/test_rules.py`
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, TIME, 16)), jnp.float32)
    sizes = dependence(lambda x: model.hidden_states(None, MASK, NUMBERS, inputs_embeds=x)[0], x)
    itself = np.eye(2 * TIME, dtype=bool).reshape(2, TIME, 2, TIME)
    may = allowed(MASK > 0, RUNS) | itself
    assert (sizes[may] > 0).all() and not sizes[~may].any()
