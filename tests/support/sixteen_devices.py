"""Run by itself on sixteen fake devices: prints what agrees with one device, fails at the first thing that does not.

First the least model on meshes of eight of them, then others on a mesh with two devices along each axis, so that one
program holds every combination of axes. Its argument is ``some`` or ``rest``: which meshes, and which others; or a
rule, whose model then runs on every mesh of eight.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from mom_jax.models.config import AttentionConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.training.sharding import BATCH_SPEC
from support.compare import assert_close
from support.exchanged import check_exchanged
from support.meshes import EIGHT, LEAST, MESHES, SMALL, agreeing, mesh_of, on_mesh, split_over, train
from support.parameters import random_model, randomised

# Layers that split over heads in a way of their own: one memory, shared keys, a norm over all heads, token shift,
# counts of tokens, several keys of a token, states of several parts.
LAYERS = {"hgrn2": {"mixture": False}, "rwkv7": {}, "titans": {}, "gated_deltaproduct": {}, "mamba3": {}}
LAYERS |= {"sse": {"mixture": False}}
SIZES = (2, 2, 2, 2)


def read(graph, params, ids, mask, cache):
    """Logits and the new cache."""
    out = nnx.merge(graph, params)(ids, mask, None, cache)
    return out.logits, out.cache


def check_layer(mesh, rule, options, rows):
    """A memory layer's output and cache, its heads split over two devices."""
    config = dataclasses.replace(SMALL, memory_rule=rule, use_short_conv=False, **options)
    graph, params = nnx.split(randomised(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0)))))
    rng = np.random.default_rng(1)
    x, mask = jnp.asarray(rng.normal(size=(4, 12, 16)), jnp.float32), jnp.asarray(rng.integers(0, 2, (4, 12)))
    cache = nnx.merge(graph, params).empty_cache(2, 4, jnp.float32)
    run = jax.jit(lambda params, x, mask, cache: nnx.merge(graph, params)(x, mask, None, cache, layer=1))
    want = jax.device_get(run(params, x, mask, cache))
    with jax.set_mesh(mesh):
        got = jax.device_get(run(split_over(mesh, params), *(jax.device_put(y, rows) for y in (x, mask)), cache))
    assert_close(got, want, 1e-5, atol=1e-7)


def check_training(graph, params, batch):
    """Loss, router logits and every gradient of a model; returns what was compiled for the mesh."""
    step = jax.jit(functools.partial(train, graph))
    want, (got, made) = jax.device_get(step(params, *batch)), on_mesh(SIZES, step, params, batch)
    assert_close(got[0], want[0], 1e-5)
    assert_close(got[1], want[1], 5e-5, atol=1e-7)  # gradients are sums over all tokens, here of sixteen parts
    return made


def check_hybrid(mesh, model, ids, mask):
    """A memory and an attention layer: logits of tokens that are split, and of a prefill and one more, with caches.

    Three rows, which no axis divides.
    """
    graph, params = nnx.split(model)
    call = jax.jit(functools.partial(read, graph))

    def in_pieces(params):
        first, cache = call(params, ids[:, :-1], mask[:, :-1], model.init_cache(len(ids)))
        return jax.device_get((call(params, ids, mask, None), first, call(params, ids[:, -1:], mask[:, -1:], cache)))

    want = in_pieces(params)
    with jax.set_mesh(mesh):
        got = in_pieces(split_over(mesh, params))
    assert_close(got, want, 1e-5, atol=1e-7)


def batch():
    """Ids, mask and numbers of documents of four rows."""
    rng = np.random.default_rng(0)
    ids, documents = rng.integers(0, 32, (4, 12)), np.sort(rng.integers(0, 3, (4, 12)), -1)
    mask = np.ones((4, 12), np.int32)
    mask[1, :5] = 0
    return [jnp.asarray(x, jnp.int32) for x in (ids, mask, documents)]


def check_model(mesh):
    """Values and gradients of a small model, the places of its parameters, and what is sent."""
    rows = batch()
    graph, params = nnx.split(random_model(SMALL))
    split = split_over(mesh, params)
    parts = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(split)]
    assert min(parts) == 1 / 8, parts
    yield "parameters are split"
    made = check_training(graph, params, rows)
    yield "loss, logits, gradients"
    states = 5 * 8 * 16 * 4  # of five memories of one row: one head's keys and values in float32
    check_exchanged(made, mesh, nnx.to_pure_dict(split), passes=1, tokens=rows[0].size, states=states)
    yield "what is exchanged"


def check_others(mesh):
    """Layers by themselves, and a hybrid."""
    for rule, options in LAYERS.items():
        check_layer(mesh, rule, options, NamedSharding(mesh, BATCH_SPEC))
        yield rule
    attention = AttentionConfig(layers=(1,), num_heads=4, num_kv_heads=2)
    hybrid = dataclasses.replace(SMALL, memory_rule="retnet", attn=attention)
    check_hybrid(mesh, random_model(hybrid), *(x[:3] for x in batch()[:2]))
    yield "hybrid, three rows, in pieces"


RUNS = {
    "some": ["parameters are split", "loss, logits, gradients", "what is exchanged"],
    "rest": [*LAYERS, "hybrid, three rows, in pieces"],
}


def compared(part):
    """The runs of a part, or of a rule, one after the other."""
    if part in RUNS:
        check = {"some": check_model, "rest": check_others}[part]
        return itertools.chain(agreeing(LEAST, MESHES[part]), check(mesh_of(SIZES)))
    config = dataclasses.replace(SMALL, memory_rule=part, num_heads=8, head_dim=4, num_hidden_layers=1)
    return agreeing(config, EIGHT)


def main(part):
    """Compares them."""
    for what in compared(part):
        print("agree:", what)


if __name__ == "__main__":
    main(*sys.argv[1:])
