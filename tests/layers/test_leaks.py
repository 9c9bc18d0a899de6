"""Gradient by gradient: no output depends on what it must not see, in the pass that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dependence import allowed, dependence
from support.mixer import choose
from support.parameters import random_mixer

from mom_jax.layers import convolution
from mom_jax.ops.segments import pack

ROWS, TIME = 2, 12
EVERY = np.ones((ROWS, TIME), bool)  # token is real, and of one document


def check(function, x, may):
    """Every allowed dependence is there, and every other one is exactly 0."""
    sizes = dependence(function, x)
    assert (sizes[may] > 0).all()
    assert not sizes[~may].any(), np.argwhere((sizes > 0) & ~may)


def in_common(memories, documents=EVERY):
    """Who may depend on whom: same row, not later, same document, a common memory."""
    common = memories[:, :, None, None, :, None] == memories[..., None, :]
    return allowed(EVERY, documents) & common.any((-2, -1))


@pytest.fixture(scope="module")
def x():
    """Hidden states."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, TIME, 16)), jnp.float32)


def test_exactly_the_allowed_dependences(x):
    """Without the shared memory a token sees those earlier ones of its row alone that have a memory in common."""
    layer = random_mixer(0.35, shared_mem=False)
    may = in_common(choose(layer.router.weight[...], x, 2))
    assert may.sum() < allowed(EVERY, EVERY).sum()  # some pairs have none
    check(lambda x: layer(x)[0], x, may)


def test_a_memory_that_the_document_between_did_not_choose(x):
    """Numbers 1 2 1: memories without a token of document 2 carry nothing of the first into the third."""
    layer = random_mixer(0.35, shared_mem=False, topk=1)
    numbers, runs = (np.repeat(n, [5, 2, 5])[None].repeat(ROWS, 0) for n in ([1, 2, 1], [0, 1, 2]))
    memories = choose(layer.router.weight[...], x, 1)
    skipped = [set(memories[b, :5, 0]) & set(memories[b, 7:, 0]) - set(memories[b, 5:7, 0]) for b in range(ROWS)]
    assert any(skipped)
    check(lambda x: layer(x, None, jnp.asarray(numbers))[0], x, in_common(memories, runs))


def test_a_leak_is_seen(x, monkeypatch):
    """A convolution that runs over all packed rows, blind to segments, is caught by the same check.

    Its taps are 16 rows apart, a whole chunk, since the padding of such short segments would hide neighbours.
    """

    def blind(x, weight, packing, state=None, bias=None, **_):
        x = pack(x, packing) if x.ndim == 3 else x
        shifted = [jnp.pad(x, ((16 * w, 0), (0, 0)))[: len(x)] for w in range(weight.shape[1])]
        return jax.nn.silu(sum(s * weight[:, -1 - w] for w, s in enumerate(shifted)))

    monkeypatch.setattr(convolution, "short_conv", blind)
    layer = random_mixer(0.35, shared_mem=False)
    may = in_common(choose(layer.router.weight[...], x, 2))
    with pytest.raises(AssertionError, match=r"\[\["):
        check(lambda x: layer(x)[0], x, may)
