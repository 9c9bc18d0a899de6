"""A small model on one device and on meshes of simulated ones: loss, router logits and every gradient."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mom_jax.layers.devices import parameter_spec
from mom_jax.models.config import MoMConfig
from mom_jax.ops.routing import auxiliary_loss
from mom_jax.training.sharding import AXES, BATCH_SPEC
from support.compare import assert_close
from support.parameters import random_model

SMALL = MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_heads=2, head_dim=8, expand_v=2.0,
                  intermediate_size=24, initializer_range=0.3)  # fmt: skip
# What every combination of axes has: tables, projections and norms split over fsdp, sequence and tensor, a router that
# the loss teaches, states that are handed on, decays that differ by head, positions that are counted along rows.
LEAST = dataclasses.replace(SMALL, memory_rule="retnet", num_heads=8, head_dim=4, num_hidden_layers=1, num_memories=2,
                            topk=1, router_renormalise=False, use_short_conv=False, use_output_gate=False,
                            intermediate_size=0)  # fmt: skip
EIGHT = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]
# Any three axes together, and what is left: one axis alone, and one of four devices beside one of two.
MESHES = {"some": [sizes for sizes in EIGHT if max(sizes) == 2], "rest": [sizes for sizes in EIGHT if max(sizes) > 2]}
Sizes = tuple[int, ...]  # along each of `AXES`


def train(graph, params, ids, mask, documents):
    """Loss, hidden states and router logits, and gradients of all parameters."""

    def loss(params):
        model = nnx.merge(graph, params)
        hidden, router, _ = model.hidden_states(ids, mask, documents)
        total, _ = model.cross_entropy(hidden, jnp.roll(ids, -1, 1))
        aux = auxiliary_loss(router, mask)
        return total / ids.size + SMALL.aux_loss_scale * aux, (hidden, router.logits)

    return jax.value_and_grad(loss, has_aux=True)(params)


def split_over(mesh, params):
    """Parameters in their places on the mesh."""
    return jax.tree.map(
        lambda p, spec: jax.device_put(p, NamedSharding(mesh, parameter_spec(spec, mesh))),
        params, nnx.get_partition_spec(params), is_leaf=lambda x: isinstance(x, PartitionSpec),
    )  # fmt: skip


def mesh_of(sizes: Sizes):
    """A mesh of the first devices."""
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def on_mesh(sizes: Sizes, step: Any, params: Any, batch: list[jax.Array]) -> tuple[Any, Any]:
    """What ``step`` makes of parameters and [B, T] arrays on a mesh of these sizes, and what it was compiled to."""
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        placed = split_over(mesh, params), *(jax.device_put(x, NamedSharding(mesh, BATCH_SPEC)) for x in batch)
        made = step.lower(*placed).compile()
        return jax.device_get(made(*placed)), made


def agreeing(config: MoMConfig, meshes: Iterable[Sizes]) -> Iterator[str]:
    """Names each mesh of eight devices on which all is what one device has; fails at the first on which it is not."""
    graph, params = nnx.split(random_model(config))
    step, rows = jax.jit(functools.partial(train, graph)), _rows()
    (want_loss, (_, want_logits)), want = jax.device_get(step(params, *rows))
    for sizes in meshes:
        ((loss, (_, logits)), gradients), _ = on_mesh(sizes, step, params, rows)
        assert_close((loss, logits, gradients), (want_loss, want_logits, want), 1e-5, atol=1e-7)
        yield ",".join(map(str, sizes))


def _rows() -> list[jax.Array]:
    """Ids, mask and numbers of documents: what eight devices divide along each axis.

    There is padding at the beginning of a row, inside, and over whole devices.
    """
    rng = np.random.default_rng(0)
    ids, documents = rng.integers(0, 32, (8, 16)), np.sort(rng.integers(0, 3, (8, 16)), -1)
    mask = (rng.integers(0, 5, (8, 16)) > 0).astype(np.int32)
    mask[1, :9], mask[2:] = 0, 1
    return [jnp.asarray(x, jnp.int32) for x in (ids, mask, documents)]
