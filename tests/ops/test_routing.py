"""Router decisions, the load-balance loss and the router's statistics against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.router_statistics import router_statistics
from mom_jax.ops.routing import load_balancing_loss, route


def softmax(x):
    """Over the last axis, in float64."""
    x = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def expected_loss(layers, top_k, mask):
    """M * sum_m f_m P_m over all real tokens of all layers, token by token."""
    probabilities = [softmax(layer[b, t]) for layer in layers for b, t in zip(*np.nonzero(mask), strict=True)]
    chosen = np.zeros_like(probabilities)
    for row, p in zip(chosen, probabilities, strict=True):
        row[np.argsort(-p, kind="stable")[:top_k]] = 1
    return len(probabilities[0]) * (chosen.mean(0) * np.mean(probabilities, 0)).sum()


def random_layers(layers=3, batch=2, time=9, memories=5, seed=0):
    """Router logits of several layers."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(batch, time, memories)), jnp.float32) for _ in range(layers))


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_route(top_k):
    """The k likeliest memories, likeliest first, with probabilities that sum to 1 over them."""
    (logits,) = random_layers(1)
    routing = route(logits, top_k)
    p = softmax(logits)
    order = np.argsort(-p, -1, kind="stable")[..., :top_k]
    chosen = np.take_along_axis(p, order, -1)
    np.testing.assert_array_equal(routing.memories, order)
    assert routing.weights.dtype == jnp.float32
    assert_close(routing.weights, chosen / chosen.sum(-1, keepdims=True), 1e-6)


def test_ties_and_extremes():
    """Ties go to the lower index; a memory whose probability underflows to 0 is still a distinct choice."""
    np.testing.assert_array_equal(route(jnp.zeros((1, 1, 4)), 3).memories[0, 0], [0, 1, 2])
    routing = route(jnp.array([[[-1e4, 0.0, -2e4, -3e4]]]), 3)
    np.testing.assert_array_equal(routing.memories[0, 0], [1, 0, 2])
    np.testing.assert_array_equal(routing.weights[0, 0], [1, 0, 0])


def test_route_in_float32():
    """bfloat16 logits are widened before the softmax."""
    (logits,) = random_layers(1)
    half = logits.astype(jnp.bfloat16)
    np.testing.assert_array_equal(route(half, 2).weights, route(half.astype(jnp.float32), 2).weights)


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_loss(top_k, masked):
    """All layers together, padding excluded, also with a mask that has columns of earlier calls."""
    layers = random_layers()
    mask = np.random.default_rng(1).integers(0, 2, (2, 9)) if masked else np.ones((2, 9), int)
    want = expected_loss(layers, top_k, mask)
    assert_close(load_balancing_loss(layers, top_k, jnp.asarray(mask) if masked else None), want, 1e-6)
    longer = np.concatenate([np.ones((2, 4), int), mask], 1)
    assert_close(load_balancing_loss(layers, top_k, jnp.asarray(longer)), want, 1e-6)


def test_padding_content_is_irrelevant():
    """Logits under the mask change neither the loss nor receive a gradient."""
    layers = random_layers()
    mask = jnp.asarray(np.random.default_rng(1).integers(0, 2, (2, 9)))
    loss = lambda layers: load_balancing_loss(layers, 2, mask)  # noqa: E731
    other = tuple(jnp.where(mask[..., None] == 0, 50.0, x) for x in layers)
    assert float(loss(other)) == pytest.approx(float(loss(layers)), rel=1e-6)
    for gradient in jax.grad(loss)(layers):
        assert not np.asarray(gradient)[np.asarray(mask) == 0].any()
        assert np.abs(np.asarray(gradient)[np.asarray(mask) == 1]).min() > 0


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_minimum_is_k(top_k):
    """Balanced routing costs k, collapsed routing up to M; with everything masked it is 0."""
    balanced = jnp.stack([jnp.roll(jnp.array([3.0, 2.0, 1.0, 0.0]), i) for i in range(4)])[None]
    assert float(load_balancing_loss((balanced,), top_k)) == pytest.approx(top_k, rel=1e-6)
    collapsed = jnp.tile(jnp.array([30.0, 0.0, -1.0, -2.0]), (1, 6, 1))
    assert float(load_balancing_loss((collapsed,), top_k)) == pytest.approx(4, rel=1e-4)
    assert float(load_balancing_loss((collapsed,), top_k, jnp.zeros((1, 6), jnp.int32))) == 0


def test_gradient_balances():
    """A step against the gradient lowers the loss of a skewed router."""
    layers = (random_layers(1)[0] + jnp.array([2.0, 0, 0, 0, -1]),)
    loss, gradient = jax.value_and_grad(lambda layers: load_balancing_loss(layers, 2))(layers)
    assert load_balancing_loss((layers[0] - 50 * gradient[0],), 2) < loss


@pytest.mark.parametrize("masked", [False, True])
def test_statistics(masked):
    """Loads and entropies against a loop over tokens."""
    layers = random_layers()
    mask = np.random.default_rng(1).integers(0, 2, (2, 9)) if masked else np.ones((2, 9), int)
    got = router_statistics(layers, 2, jnp.asarray(mask) if masked else None)
    load, entropy = np.zeros((3, 5)), np.zeros(3)
    for i, layer in enumerate(layers):
        for b, t in zip(*np.nonzero(mask), strict=True):
            p = softmax(layer[b, t])
            load[i, np.argsort(-p)[:2]] += 0.5 / mask.sum()
            entropy[i] -= (p * np.log(p)).sum() / mask.sum()
    assert_close(got, {"load": load, "routing_entropy": entropy}, 1e-5)
