"""Cross entropy in pieces against the dense formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.labels import IGNORE
from mom_jax.ops import loss as loss_module
from mom_jax.ops.loss import chunked_cross_entropy, token_cross_entropy


def example(batch=2, time=7, width=5, vocab=11):
    """Hidden states, output embedding, and labels of which some are ignored."""
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(batch, time, width)), rng.normal(size=(vocab, width))
    labels = rng.integers(0, vocab, (batch, time))
    labels[0, 2:4] = labels[1, -1] = IGNORE
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(weight, jnp.float32), jnp.asarray(labels, jnp.int32)


def dense(hidden, weight, labels):
    """The sum in nats, and its gradients, by the formula."""
    hidden, weight, labels = np.asarray(hidden, np.float64), np.asarray(weight, np.float64), np.asarray(labels)
    logits = hidden @ weight.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    keep = labels != IGNORE
    total = -np.log(np.take_along_axis(p, np.maximum(labels, 0)[..., None], -1)[..., 0])[keep].sum()
    dlogits = (p - np.eye(weight.shape[0])[np.maximum(labels, 0)]) * keep[..., None]
    return total, keep.sum(), dlogits @ weight, np.einsum("btv,btd->vd", dlogits, hidden)


@pytest.mark.parametrize("limit", [2**25, 2 * 11 * 3, 1], ids=["one piece", "three pieces", "a piece for each column"])
def test_equals_dense(monkeypatch, limit):
    """Sum, count and both gradients, however many pieces time is cut into."""
    monkeypatch.setattr(loss_module, "_MAX_LOGITS", limit)
    hidden, weight, labels = example()
    run = jax.value_and_grad(lambda h, w: chunked_cross_entropy(h, w, labels), (0, 1), has_aux=True)
    (total, count), gradients = run(hidden, weight)
    assert_close((total, count, *gradients), dense(hidden, weight, labels), 1e-5)
    assert total.dtype == count.dtype == jnp.float32


def test_pieces_bound_the_logits(monkeypatch):
    """No array of the program, backward pass included, is larger than the limit."""
    monkeypatch.setattr(loss_module, "_MAX_LOGITS", 2 * 101 * 4)
    hidden, weight, labels = example(time=16, vocab=101)
    program = jax.jit(jax.grad(lambda h: chunked_cross_entropy(h, weight, labels)[0])).lower(hidden).as_text()
    assert "2x4x101xf32" in program and "2x16x101xf32" not in program


def test_nothing_to_predict():
    """All labels ignored: sum and count 0, gradient 0."""
    hidden, weight, labels = example()
    labels = jnp.full_like(labels, IGNORE)
    assert [float(x) for x in chunked_cross_entropy(hidden, weight, labels)] == [0, 0]
    assert not np.asarray(jax.grad(lambda h: chunked_cross_entropy(h, weight, labels)[0])(hidden)).any()


def test_bfloat16_hidden_states():
    """Logits are summed in float32: within 1e-2 of float32 (the inputs' rounding)."""
    hidden, weight, labels = example()
    total, _ = chunked_cross_entropy(hidden.astype(jnp.bfloat16), weight, labels)
    assert total.dtype == jnp.float32
    assert_close(total, dense(hidden, weight, labels)[0], 1e-2)


def test_token_cross_entropy():
    """Each label on its own; extreme logits stay finite."""
    hidden, weight, labels = example()
    nats = token_cross_entropy(hidden @ weight.T, labels)
    assert nats.shape == labels.shape and not np.asarray(nats)[np.asarray(labels) == IGNORE].any()
    assert_close(nats.sum(), dense(hidden, weight, labels)[0], 1e-5)
    assert float(token_cross_entropy(jnp.array([[1e4, 0.0]]), jnp.array([1]))[0]) == 1e4


def test_the_penalty_and_its_gradients(monkeypatch):
    """`jax.grad` of the formula, over several pieces; labels that are ignored bear no penalty."""
    monkeypatch.setattr(loss_module, "_MAX_LOGITS", 2 * 11 * 3)
    hidden, weight, labels = example()

    def formula(h, w):
        z = jax.nn.logsumexp(h @ w.T, -1)
        nats = token_cross_entropy(h @ w.T, labels).sum()
        return nats + 0.3 * jnp.where(labels == IGNORE, 0, z**2).sum(), nats

    expected = jax.value_and_grad(formula, (0, 1), has_aux=True)(hidden, weight)
    run = jax.value_and_grad(lambda h, w: loss_module.penalised_cross_entropy(h, w, labels, 0.3), (0, 1), has_aux=True)
    assert_close(jax.tree.leaves(run(hidden, weight)), jax.tree.leaves(expected), 1e-5)
