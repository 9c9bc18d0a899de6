"""Router decisions, the load-balance loss and the router's statistics against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close

from mom_jax.ops.router_statistics import chosen_sets, dead_memories, router_statistics, routing_churn
from mom_jax.ops.routing import (
    auxiliary_loss,
    balanced_bias,
    probabilities,
    router_output,
    router_z_loss,
)
from mom_jax.ops.routing import load_balancing_loss as _load_balancing_loss
from mom_jax.ops.routing import route as _route

route = jax.jit(_route, static_argnames=("top_k", "scores", "renormalise"))
load_balancing_loss = jax.jit(_load_balancing_loss, static_argnames="top_k")


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


def test_ties_and_extremes():
    """Ties go to the lower index; a memory whose probability underflows to 0 is still a distinct choice."""
    np.testing.assert_array_equal(route(jnp.zeros((1, 1, 4)), 3)[1][0, 0], [0, 1, 2])
    routing = route(jnp.array([[[-1e4, 0.0, -2e4, -3e4]]]), 3)
    np.testing.assert_array_equal(routing[1][0, 0], [1, 0, 2])
    np.testing.assert_array_equal(routing[0][0, 0], [1, 0, 0])


def test_route_in_float32():
    """bfloat16 logits are widened before the softmax."""
    (logits,) = random_layers(1)
    half = logits.astype(jnp.bfloat16)
    np.testing.assert_array_equal(route(half, 2)[0], route(half.astype(jnp.float32), 2)[0])


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


@pytest.mark.parametrize("masked", [False, True])
def test_statistics(masked):
    """Loads and entropies against a loop over tokens."""
    layers = random_layers()
    mask = np.random.default_rng(1).integers(0, 2, (2, 9)) if masked else np.ones((2, 9), int)
    keep = jnp.asarray(mask) if masked else None
    got = router_statistics(router_output(jnp.stack(layers), 2, keep), keep)
    load, entropy = np.zeros((3, 5)), np.zeros(3)
    for i, layer in enumerate(layers):
        for b, t in zip(*np.nonzero(mask), strict=True):
            p = softmax(layer[b, t])
            load[i, np.argsort(-p)[:2]] += 0.5 / mask.sum()
            entropy[i] -= (p * np.log(p)).sum() / mask.sum()
    assert_close(got, {"load": load, "routing_entropy": entropy}, 1e-5)


def random_bias(layers=3, memories=5, seed=3):
    """Biases strong enough to change choices."""
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.3, (layers, memories)), jnp.float32)


def test_gradients_know_nothing_of_the_bias():
    """It gets exactly none, and those of the logits are those of the same choice made without it."""
    (logits,), bias = random_layers(1), random_bias(1)[0]
    memories = route(logits, 2, bias)[1]

    def mixed(weights):
        return jnp.sum(weights * jnp.arange(1.0, 3.0))

    of_logits, of_bias = jax.grad(lambda x, b: mixed(route(x, 2, b)[0]), argnums=(0, 1))(logits, bias)
    chosen = lambda x: jax.nn.softmax(jnp.take_along_axis(x, memories, -1))  # noqa: E731
    assert_close(of_logits, jax.grad(lambda x: mixed(chosen(x)))(logits), 1e-6)
    assert not np.asarray(of_bias).any()


def test_a_bias_against_certainty():
    """Memories whose probabilities underflowed to 0 can be chosen, with finite weights and gradients."""
    logits, bias = jnp.array([[[0.0, -200.0, -201.0]]]), jnp.array([-2.0, 0.0, 0.0])
    routing = route(logits, 2, bias)
    np.testing.assert_array_equal(routing[1][0, 0], [1, 2])
    assert_close(routing[0][0, 0], softmax([1.0, 0.0]), 1e-6)
    assert np.isfinite(jax.grad(lambda x: route(x, 2, bias)[0][..., 0].sum())(logits)).all()


def test_loss_and_statistics_of_a_biased_choice():
    """Each layer's own bias counts in what was chosen, and not in probabilities and entropies."""
    layers, bias = random_layers(), random_bias()
    chosen = np.zeros((3, 5))
    for layer, (logits, own) in enumerate(zip(layers, bias, strict=True)):
        chosen[layer] = np.bincount(np.asarray(route(logits, 2, own)[1]).reshape(-1), minlength=5)
    logits = jnp.stack(layers)
    biased = router_output(logits, 2, bias=bias)
    got, plain = router_statistics(biased), router_statistics(router_output(logits, 2))
    assert_close(got, {"load": chosen / (2 * 18), "routing_entropy": plain["routing_entropy"]}, 1e-6)
    probability = softmax(jnp.stack(layers)).mean((0, 1, 2))
    want = 5 * np.dot(chosen.sum(0) / (3 * 18), probability)
    assert_close(auxiliary_loss(biased), want, 1e-6)


def test_the_bias_moves_against_the_load():
    """By the rate alone, however far off the load is; a balanced memory's stays."""
    bias, load = jnp.array([[0.5, 0.0, -0.5, 0.0]]), jnp.array([[0.3, 0.25, 0.45, 0.0]])
    assert_close(balanced_bias(bias, load, 0.01), jnp.array([[0.49, 0.0, -0.51, 0.01]]), 1e-6)


def test_a_skewed_router_evens_out():
    """From one memory that nearly all tokens choose and one that hardly any does to loads within a tenth of balance."""
    (logits,), bias = random_layers(1, 4, 256, 4), jnp.zeros((1, 4))
    logits = (logits + jnp.array([2.0, 0, 0, -2.0]))[None]
    load = router_statistics(router_output(logits, 2))["load"]
    assert load[0, 0] > 0.45 and load[0, 3] < 0.05
    step = jax.jit(lambda bias: router_statistics(router_output(logits, 2, bias=bias))["load"])
    for _ in range(200):
        load = step(bias)
        bias = balanced_bias(bias, load, 0.005)
    assert_close(load, jnp.full((1, 4), 0.25), 0.1)


def test_dead_memories():
    """Less than a hundredth of a balanced load."""
    load = jnp.array([[0.4, 0.5976, 0.0024, 0.0], [0.25, 0.25, 0.2474, 0.0026]])
    np.testing.assert_array_equal(dead_memories(load), [[False, False, True, True], [False] * 4])


def test_churn_counts_sets():
    """Another order of the same memories is no change; padding never changes."""
    first = jnp.array([[[[3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [3.0, 2.0, 0.0]]]])
    second = jnp.array([[[[2.0, 3.0, 0.0], [3.0, 0.0, 2.0], [3.0, 2.0, 0.0], [0.0, 3.0, 2.0]]]])
    mask = jnp.array([[1, 1, 1, 0]])
    former, latter = (chosen_sets(router_output(logits, 2), mask) for logits in (first, second))
    np.testing.assert_array_equal(former.sum((-2, -1)), [[6]])
    np.testing.assert_array_equal(routing_churn(former, latter), [1])
    biased = chosen_sets(router_output(first, 2, bias=jnp.array([[0.0, 0.0, 2.0]])), mask)
    np.testing.assert_array_equal(routing_churn(former, biased), [3])


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("renormalise", [True, False], ids=["renormalised", "plain"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_scores(scores, renormalise, biased):
    """Weights are the scores of the memories with the largest scores and bias, which itself is in no weight; likeliest
    first, in float32."""
    logits = random_layers(1)[0]
    bias = jnp.array([0.0, 0.6, -0.4, 0.0, 0.2]) if biased else None
    exact = np.asarray(logits, np.float64)
    values = softmax(exact) if scores == "softmax" else 1 / (1 + np.exp(-exact))
    order = np.argsort(-(values + (0 if bias is None else np.asarray(bias))), -1, kind="stable")
    for top_k in (1, 2, 5):
        weights, memory_ids = route(logits, top_k, bias, scores=scores, renormalise=renormalise)
        np.testing.assert_array_equal(memory_ids, order[..., :top_k])
        want = np.take_along_axis(values, order[..., :top_k], -1)
        assert weights.dtype == jnp.float32
        assert_close(weights, want / want.sum(-1, keepdims=True) if renormalise else want, 1e-6)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_what_is_read_teaches_the_router_of_one_memory_only_by_plain_weights(scores):
    logits = random_layers(1)[0]

    def mixed(logits, renormalise):
        weights, memory_ids = route(logits, 1, scores=scores, renormalise=renormalise)
        return jnp.sum(weights * (1.0 + memory_ids))

    assert np.abs(jax.grad(mixed)(logits, True)).max() < 1e-6
    assert np.abs(jax.grad(mixed)(logits, False)).max(-1).min() > 1e-3


def test_sigmoids_as_a_distribution():
    """Shares of the sum; of logits so low that every sigmoid underflows too, with finite gradients."""
    logits = random_layers(1)[0]
    values = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    assert_close(probabilities(logits, "sigmoid"), values / values.sum(-1, keepdims=True), 1e-6)
    low = logits - 1000
    assert_close(probabilities(low, "sigmoid"), softmax(low), 1e-4)
    weights = lambda x: jnp.sum(route(x, 2, scores="sigmoid")[0][..., 0])  # noqa: E731
    assert np.isfinite(jax.grad(weights)(low)).all()


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_z_loss(scores):
    """Against numpy, padding excluded; of no router 0."""
    logits = jnp.stack(random_layers())
    mask = np.random.default_rng(1).integers(0, 2, (2, 9))
    exact = np.asarray(logits, np.float64)
    squares = np.log(np.exp(exact).sum(-1)) ** 2 if scores == "softmax" else (np.log1p(np.exp(exact)) ** 2).mean(-1)
    router = router_output(logits, 2, jnp.asarray(mask))
    assert_close(router_z_loss(router, jnp.asarray(mask), scores), squares[:, mask == 1].mean(), 1e-6)
    assert_close(router_z_loss(router, scores=scores), squares.mean(), 1e-6)
    assert float(router_z_loss(None)) == 0


def test_loads_and_entropy_of_sigmoid_scores():
    logits = jnp.stack(random_layers())
    shares = np.asarray(probabilities(logits, "sigmoid"), np.float64)
    router = router_output(logits, 2)
    got = router_statistics(router, scores="sigmoid")
    assert_close(got["routing_entropy"], -(shares * np.log(shares)).sum(-1).mean((1, 2)), 1e-6)
    want = 5 * np.dot(np.asarray(router.load).sum((0, 1)) / (3 * 18), shares.mean((0, 1, 2)))
    assert_close(auxiliary_loss(router, scores="sigmoid"), want, 1e-6)
