"""Run by itself on eight fake devices: a model of one rule on meshes of eight devices, beside one device.

    all_meshes.py RULE [DATA,FSDP,SEQUENCE,TENSOR ...]

Prints ``agree: MESH`` for each mesh on which loss, router logits and every gradient are those of one device; without
any it takes all. Rows hold packed documents, and padding at their beginning, inside, and over whole devices.
"""

import dataclasses
import functools
import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from support.compare import assert_close
from support.parameters import random_model
from support.sixteen_devices import CONFIG, on_mesh, train

SIZES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]
ROWS, TOKENS = 8, 16  # what eight devices divide, along each axis
MODEL = dataclasses.replace(CONFIG, num_heads=8, head_dim=4, num_hidden_layers=1)


def batch() -> list[jax.Array]:
    """Ids, mask and numbers of documents."""
    rng = np.random.default_rng(0)
    ids, documents = rng.integers(0, 32, (ROWS, TOKENS)), np.sort(rng.integers(0, 3, (ROWS, TOKENS)), -1)
    mask = (rng.integers(0, 5, (ROWS, TOKENS)) > 0).astype(np.int32)
    mask[1, :9], mask[2:] = 0, 1
    return [jnp.asarray(x, jnp.int32) for x in (ids, mask, documents)]


def main(rule: str, *meshes: str) -> None:
    """Compares them, one after the other."""
    graph, params = nnx.split(random_model(dataclasses.replace(MODEL, memory_rule=rule)))
    step, rows = jax.jit(functools.partial(train, graph)), batch()
    (want_loss, (_, want_logits)), want = jax.device_get(step(params, *rows))
    for sizes in [tuple(map(int, mesh.split(","))) for mesh in meshes] or SIZES:
        ((loss, (_, logits)), gradients), _ = on_mesh(sizes, step, params, rows)
        assert_close((loss, logits, gradients), (want_loss, want_logits, want), 1e-5, atol=1e-7)
        print("agree:", ",".join(map(str, sizes)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
