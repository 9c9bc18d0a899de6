"""Inputs of the gated delta rule, the cases that every implementation is held against, and what they should give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.ops.segments import ChunkTable
from pallas_kernels.chunks import Chunks
from support.recurrence import delta_rule

NAMES = ("q", "k", "v", "g", "beta", "state")


def example(tokens, segments, sizes=(2, 8, 12), seed=0, **changes):
    """q, k, v, g, beta [tokens, H, ...] and state [segments, H, K, V] in float32; keys are L2-normalised."""
    heads, keys, values = sizes
    rng = np.random.default_rng(seed)
    x = {
        "q": rng.normal(size=(tokens, heads, keys)),
        "k": rng.normal(size=(tokens, heads, keys)),
        "v": rng.normal(size=(tokens, heads, values)),
        "g": -np.log1p(np.exp(rng.normal(size=(tokens, heads)))),
        "beta": 1 / (1 + np.exp(-rng.normal(size=(tokens, heads)))),
        "state": rng.normal(size=(segments, heads, keys, values)),
    } | {name: change(rng, tokens, heads, keys) for name, change in changes.items()}
    x["k"] /= np.linalg.norm(x["k"], axis=-1, keepdims=True)
    return {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}


def with_gradients(function, inputs, cotangents):
    """Outputs of ``function`` and its gradients."""
    outputs, pull = jax.vjp(function, inputs)
    return outputs, pull(cotangents)[0]


def cotangents_of(inputs):
    """Random cotangents of the outputs and final states."""
    rng = np.random.default_rng(99)
    return tuple(jnp.asarray(rng.normal(size=inputs[name].shape), jnp.float32) for name in ("v", "state"))


def expected(inputs, lengths, resets):
    """Outputs, final states and gradients of the float64 loop."""
    scale = inputs["k"].shape[-1] ** -0.5
    with jax.enable_x64(True):
        wide, cotangents = jax.tree.map(lambda a: np.asarray(a, np.float64), (inputs, cotangents_of(inputs)))
        function = functools.partial(delta_rule, lengths=lengths, resets=list(resets), scale=scale)
        return jax.device_get(jax.jit(functools.partial(with_gradients, function))(wide, cotangents))


RAGGED = (17, 0, 1, 16, 33, 1, 2, 0)
CASES = {
    "ragged": (RAGGED, (), {}),
    "documents": (RAGGED, (0, 5, 16, 17, 18, 40, 41, 66, 68), {}),
    "plain delta rule": ((20, 3), (), {"g": lambda r, n, h, d: np.zeros((n, h))}),
    "strong decay": ((20, 3), (), {"g": lambda r, n, h, d: np.where(r.random((n, h)) < 0.3, -50.0, -0.1)}),
    "total decay": ((20, 3), (), {"g": lambda r, n, h, d: np.full((n, h), -1e4)}),
    "total decay among weak": (
        (20, 3),
        (),
        {"g": lambda r, n, h, d: np.where(np.arange(n)[:, None] % 7 == 0, -1e4, -0.05) * np.ones((n, h))},
    ),
    "near-duplicate keys": (
        (40,),
        (),
        {
            "k": lambda r, n, h, d: np.ones((n, h, d)) + 0.02 * r.normal(size=(n, h, d)),
            "g": lambda r, n, h, d: np.full((n, h), -1e-3),
            "beta": lambda r, n, h, d: np.full((n, h), 0.98),
        },
    ),
    "equal keys, strength 2": (
        (40,),
        (),
        {
            "k": lambda r, n, h, d: np.ones((n, h, d)),
            "g": lambda r, n, h, d: np.full((n, h), -0.02),
            "beta": lambda r, n, h, d: np.full((n, h), 2.0),
        },
    ),
}


@functools.cache
def case(name, sizes=(2, 8, 12)):
    """Inputs and expectation of a case."""
    lengths, resets, changes = CASES[name]
    inputs = example(sum(lengths), len(lengths), sizes, **changes)
    return inputs, lengths, resets, expected(inputs, lengths, resets)


def chunks_of(table: ChunkTable) -> Chunks:
    """A chunk table as the kernels take it."""
    document = table.reset
    if document is not None:
        document = jnp.cumsum(document.reshape(-1, table.chunk_size), -1, dtype=jnp.int32).reshape(-1)
    return Chunks(table.segment, table.first, table.last, document)
