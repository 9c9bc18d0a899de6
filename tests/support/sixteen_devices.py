"""Run by itself on sixteen fake devices: prints what agrees with one device, fails at the first thing that does not.

Each axis of the mesh has two devices, so that one program holds every combination of axes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mom_jax.layers.devices import parameter_spec
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.routing import auxiliary_loss
from mom_jax.training.sharding import AXES, BATCH_SPEC
from support.compare import assert_close
from support.exchanged import check_exchanged
from support.parameters import random_model, randomised

CONFIG = MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_heads=2, head_dim=8, expand_v=2.0,
                   intermediate_size=24, initializer_range=0.3)  # fmt: skip


# Layers that split over heads in a way of their own: numbers of heads, one memory, shared keys, a norm over all
# heads, token shift, counts of tokens, several keys of a token, states of several parts.
LAYERS = {"retnet": {}, "hgrn2": {"mixture": False}, "rwkv7": {}, "titans": {}, "gated_deltaproduct": {}}
LAYERS |= {"mamba3": {}, "sse": {"mixture": False}}
# Beside the delta rule, which hands states on by matrices: one that does by decays. The others are in `all_meshes.py`.
RULES = ("mamba2",)
SIZES = (2, 2, 2, 2)


def train(graph, params, ids, mask, documents):
    """Loss, hidden states and router logits, and gradients of all parameters."""

    def loss(params):
        model = nnx.merge(graph, params)
        hidden, router, _ = model.hidden_states(ids, mask, documents)
        total, _ = model.cross_entropy(hidden, jnp.roll(ids, -1, 1))
        aux = auxiliary_loss(router, mask)
        return total / ids.size + CONFIG.aux_loss_scale * aux, (hidden, router.logits)

    return jax.value_and_grad(loss, has_aux=True)(params)


def read(graph, params, ids, mask, cache):
    """Logits and the new cache."""
    out = nnx.merge(graph, params)(ids, mask, None, cache)
    return out.logits, out.cache


def split_over(mesh, params):
    """Parameters in their places on the mesh."""
    return jax.tree.map(
        lambda p, spec: jax.device_put(p, NamedSharding(mesh, parameter_spec(spec, mesh))),
        params, nnx.get_partition_spec(params), is_leaf=lambda x: isinstance(x, PartitionSpec),
    )  # fmt: skip


def on_mesh(sizes, step, params, batch):
    """What ``step`` makes of parameters and [B, T] arrays on a mesh of these sizes, and what it was compiled to."""
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    with jax.set_mesh(mesh):
        placed = split_over(mesh, params), *(jax.device_put(x, NamedSharding(mesh, BATCH_SPEC)) for x in batch)
        made = step.lower(*placed).compile()
        return jax.device_get(made(*placed)), made


def check_layer(mesh, rule, options, rows):
    """A memory layer's output and cache, its heads split over two devices."""
    config = dataclasses.replace(CONFIG, memory_rule=rule, **options)
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
    """A model with an attention layer: logits and the cache of a prefill, and logits of tokens that are split.

    Three rows, which no axis divides.
    """
    graph, params = nnx.split(model)
    cache = model.init_cache(len(ids))
    call = jax.jit(lambda *inputs: (read(graph, *inputs), read(graph, *inputs[:-1], None)))
    want = jax.device_get(call(params, ids, mask, cache))
    with jax.set_mesh(mesh):
        got = jax.device_get(call(split_over(mesh, params), ids, mask, cache))
    assert_close(got, want, 1e-5, atol=1e-7)


def check_pieces(mesh, model, ids, mask):
    """A prefill of all tokens but one, and one more: logits and caches."""
    graph, params = nnx.split(model)
    call = jax.jit(functools.partial(read, graph))

    def in_pieces(params):
        first, cache = call(params, ids[:, :-1], mask[:, :-1], model.init_cache(len(ids)))
        return jax.device_get((first, call(params, ids[:, -1:], mask[:, -1:], cache)))

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


def main():
    """Compares the two runs, one after the other."""
    mesh, rows = jax.make_mesh(SIZES, AXES, axis_types=(AxisType.Auto,) * 4), batch()
    model = random_model(CONFIG)
    graph, params = nnx.split(model)
    split = split_over(mesh, params)
    sizes = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(split)]
    assert min(sizes) == 1 / 8, sizes
    print("agree: parameters are split")

    made = check_training(graph, params, rows)
    print("agree: loss, logits, gradients")
    states = 5 * 8 * 16 * 4  # of five memories of one row: one head's keys and values in float32
    check_exchanged(made, mesh, nnx.to_pure_dict(split), passes=1, tokens=rows[0].size, states=states)
    print("agree: what is exchanged")
    for rule in RULES:
        config = dataclasses.replace(CONFIG, memory_rule=rule, num_hidden_layers=1, use_short_conv=False)
        check_training(*nnx.split(random_model(config)), rows)
        print(f"agree: {rule}, trained")
    check_pieces(mesh, model, *rows[:2])
    print("agree: cached pieces")
    for rule, options in LAYERS.items():
        check_layer(mesh, rule, options, NamedSharding(mesh, BATCH_SPEC))
        print(f"agree: {rule}")
    hybrid = dataclasses.replace(CONFIG, attn=AttentionConfig(layers=(1,), num_heads=4, num_kv_heads=2))
    check_hybrid(mesh, random_model(hybrid), *(x[:3] for x in rows[:2]))
    print("agree: hybrid, three rows")


if __name__ == "__main__":
    main()
