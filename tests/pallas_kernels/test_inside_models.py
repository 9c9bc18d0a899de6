"""Kernels inside a model, interpreted on the host: packed by layers, scanned, rematerialised; beside XLA."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support.cases import some
from support.compare import assert_close
from support.kernels import PLATFORMS, interpret_kernels
from support.parameters import random_model

from mom_jax.models.config import MoMConfig

SMALL = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 1, "head_dim": 64, "num_memories": 2,
         "topk": 2, "intermediate_size": 16, "conv_size": 2}  # fmt: skip


@functools.cache
def measured(impl):
    """Gradients and hidden states of documents of several lengths."""
    ids = jax.random.randint(jax.random.key(0), (2, 20), 0, 16)
    documents = jnp.where(jnp.arange(20) < 13, 0, 1)[None].repeat(2, 0)
    graph, params = nnx.split(random_model(MoMConfig(**SMALL | {"num_hidden_layers": 1}, impl=impl), 0.1))

    def loss(params):
        hidden, _, _ = nnx.merge(graph, params).hidden_states(ids, segment_ids=documents, remat="dots")
        return jnp.sin(hidden).sum(), hidden

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("platform", some(PLATFORMS, ("gpu",)))
def test_model(platform, monkeypatch):
    """Kernels give what XLA gives."""
    want = measured("xla")
    ran = interpret_kernels(monkeypatch, platform)
    assert_close(measured(platform), want, 1e-4)
    kernels = {"tpu": {"delta_rule", "grouped_matmul", "short_conv"}}
    kernels["gpu"] = kernels["tpu"] | {"mixing"}
    assert set(ran) == kernels[platform]


def test_single_tokens_on_a_gpu(monkeypatch):
    """A token of each row after a prompt: padding in one row, a new document in another; states change in place."""
    model = random_model(MoMConfig(**SMALL), 0.1)
    graph, params = nnx.split(model)
    prompts = jax.random.randint(jax.random.key(0), (3, 5), 0, 16)
    read = lambda params, cache: nnx.merge(graph, params).hidden_states(prompts, cache=cache).cache  # noqa: E731
    cache = jax.jit(read)(params, model.init_cache(3))
    mask, documents = jnp.array([[0], [1], [1]]), jnp.array([[0], [1], [0]])

    def token():
        read = lambda params: nnx.merge(graph, params).hidden_states(mask, mask, documents, cache)[::2]  # noqa: E731
        return jax.jit(read)(params)

    want = token()
    ran = interpret_kernels(monkeypatch, "gpu")
    assert_close(token(), want, 1e-5)
    assert {"step", "short_conv_step"} <= set(ran)
