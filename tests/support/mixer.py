"""The MoM layer as the paper defines it: a loop over rows, memories and documents; no packing, no chunk."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from support.recurrence import delta_rule


def choose(router_weight, x, top_k: int) -> np.ndarray:
    """The memories [B, T, k] of every token."""
    return np.argsort(-(np.asarray(x, np.float64) @ np.asarray(router_weight, np.float64)), -1, kind="stable")[
        ..., :top_k
    ]


def sequences(memories, num_memories: int, shared: bool, keep, documents) -> list[tuple[int, int, list[int]]]:
    """(memory, row, tokens): what each memory sees of each document, in time order."""
    found = []
    for memory, b in itertools.product(range(num_memories + shared), range(len(memories))):
        hits = [
            t for t in range(memories.shape[1]) if keep[b, t] and (memory == num_memories or memory in memories[b, t])
        ]
        runs = itertools.groupby(hits, key=lambda t, b=b: documents[b, t])
        found += [(memory, b, list(run)) for _, run in runs]
    return found


def dense_mixer(p: dict[str, Any], x, memories, found, *, heads: int, shared: bool, eps: float, max_beta: float):
    """Output [B, T, D] of the layer with parameters ``p`` by name; each ``found`` item starts empty."""
    split = lambda y: y.reshape(*y.shape[:-1], heads, -1)  # noqa: E731
    unit = lambda y: y / jnp.sqrt((y * y).sum(-1, keepdims=True) + 1e-6)  # noqa: E731

    def filtered(y, name):
        if f"rule.{name}_conv1d" not in p:
            return jax.nn.silu(y)
        weight = p[f"rule.{name}_conv1d"]
        taps = weight.shape[1]
        y = jnp.pad(y, ((taps - 1, 0), (0, 0)))
        return jax.nn.silu(sum(y[w : len(y) - taps + 1 + w] * weight[:, w] for w in range(taps)))

    rows = []
    for memory, b, tokens in found:
        own = memory if p["rule.k_proj"].shape[0] > 1 else 0
        s = x[b, np.array(tokens)]
        decay = jnp.zeros((len(tokens), heads))
        if "rule.a_proj" in p:
            decay = -jnp.exp(p["rule.A_log"]) * jax.nn.softplus(s @ p["rule.a_proj"][own] + p["rule.dt_bias"])
        rows.append(
            {
                "q": unit(split(filtered(s @ p["rule.q_proj.weight"], "q"))),
                "k": unit(split(filtered(s @ p["rule.k_proj"][own], "k"))),
                "v": split(filtered(s @ p["rule.v_proj"][own], "v")),
                "g": decay,
                "beta": max_beta * jax.nn.sigmoid(s @ p["rule.b_proj"][own]),
            }
        )
    inputs = {name: jnp.concatenate([row[name] for row in rows]) for name in rows[0]}
    key_dim, value_dim = inputs["k"].shape[-1], inputs["v"].shape[-1]
    lengths = [len(tokens) for _, _, tokens in found]
    inputs["state"] = jnp.zeros((len(lengths), heads, key_dim, value_dim), x.dtype)
    read, _ = delta_rule(inputs, lengths, [], key_dim**-0.5)

    weights, routed = jnp.ones(memories.shape), 1
    if "router.weight" in p:
        weights, routed = jax.nn.softmax(x @ p["router.weight"], -1), p["router.weight"].shape[1]
        weights = jnp.take_along_axis(weights, jnp.asarray(memories), -1)
        weights = weights / weights.sum(-1, keepdims=True)
    o, begin = jnp.zeros((*x.shape[:2], heads, value_dim), x.dtype), 0
    for memory, b, tokens in found:
        t = np.array(tokens)
        w = jnp.ones(len(t)) if shared and memory == routed else (weights[b, t] * (memories[b, t] == memory)).sum(-1)
        o = o.at[b, t].add(w[:, None, None] * read[begin : begin + len(t)])
        begin += len(t)
    o = o / jnp.sqrt((o * o).mean(-1, keepdims=True) + eps) * p["output.norm"]
    if "output.g_proj.weight" in p:
        o = o * jax.nn.silu(split(x @ p["output.g_proj.weight"]))
    return o.reshape(*x.shape[:2], -1) @ p["output.o_proj.weight"]
