"""Attention against its definition, and who may see whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compare import assert_close
from support.definitions import turned
from support.dependence import allowed, dependence

from mom_jax.layers import attention
from mom_jax.layers.attention import Attention

ROWS, TIME, HIDDEN, HEADS = 2, 9, 16, 4


def make(**options) -> Attention:
    """Four query heads of four channels; large weights, so that attention is far from uniform."""
    options = {"num_kv_heads": 2, "initializer_range": 0.5, **options}
    return Attention(HIDDEN, HEADS, **options, rngs=nnx.Rngs(0))


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request, monkeypatch):
    """The square of all queries and keys, and blocks of two to three queries, as in longer rows."""
    if request.param == "in blocks":
        monkeypatch.setattr(attention, "_QUERIES", 2)


@pytest.fixture(scope="module")
def x():
    """Hidden states."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, TIME, HIDDEN)), jnp.float32)


def by_definition(layer: Attention, x, keep, documents):
    """One query at a time, in float64."""
    w = {name: np.asarray(getattr(layer, f"{name}_proj").weight[...], np.float64) for name in "qkvo"}
    y, size = np.zeros_like(x, np.float64), layer.head_dim
    group = HEADS // (w["k"].shape[1] // size)
    for b in range(x.shape[0]):
        position = np.cumsum(keep[b]) - 1
        for t in np.flatnonzero(keep[b]):
            sees = [s for s in np.flatnonzero(keep[b, : t + 1]) if documents[b, s] == documents[b, t]
                    and (layer.window is None or position[t] - position[s] < layer.window)]  # fmt: skip
            heads = []
            for h in range(HEADS):
                own, shared = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
                q = turned(x[b, t] @ w["q"][:, own], position[t], layer.rope_theta)
                k = np.stack([turned(x[b, s] @ w["k"][:, shared], position[s], layer.rope_theta) for s in sees])
                score = np.exp(k @ q / size**0.5)
                heads.append(score @ (x[b, sees] @ w["v"][:, shared]) / score.sum())
            y[b, t] = np.concatenate(heads) @ w["o"]
    return y


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("ragged", [False, True])
def test_definition(x, window, ragged):
    """Grouped queries, rotary positions, windows, padding in holes, documents."""
    layer, keep, documents = make(window=window), np.ones((ROWS, TIME), int), np.zeros((ROWS, TIME), int)
    if ragged:
        keep[0, :3], keep[1, [2, 5, 8]] = 0, 0
        documents[1, 4:] = 1
    arguments = (jnp.asarray(keep), jnp.asarray(documents)) if ragged else (None, None)
    y, *_ = layer(x, *arguments)
    assert_close(y, by_definition(layer, np.asarray(x, np.float64), keep, documents), 1e-5)
    assert not np.asarray(y)[keep == 0].any()


@pytest.mark.usefixtures("blocks")
def test_who_sees_whom(x):
    """Gradients: exactly 0 from later tokens, other rows, other documents, padding and outside of the window."""
    layer, keep, documents = make(window=4), np.ones((ROWS, TIME), int), np.zeros((ROWS, TIME), int)
    keep[0, 5], documents[1, 5:] = 0, 1
    place = np.cumsum(keep, 1)
    may = allowed(keep > 0, documents) & (place[:, :, None, None] - place < 4)
    sizes = dependence(lambda x: layer(x, jnp.asarray(keep), jnp.asarray(documents))[0], x)
    assert (sizes[may] > 0).all() and not sizes[~may].any()


def test_biases(x):
    """Biases on queries, keys and values alone, and they matter."""
    layer, plain = make(qkv_bias=True), make()
    assert not hasattr(layer.o_proj, "bias")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(layer, name).weight[...] = getattr(plain, name).weight[...]
    before, *_ = layer(x)
    for proj in (layer.q_proj, layer.k_proj, layer.v_proj):
        proj.bias[...] = jax.random.normal(jax.random.key(3), proj.bias.shape)
    assert np.abs(layer(x)[0] - before).max() > 0.1
    assert_close(before, plain(x)[0], 1e-6)


def test_bfloat16(x):
    """bfloat16 in, bfloat16 out, within 3 % of float32."""
    layer = make()
    y, *_ = layer(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), layer(x)[0], 0.03)
