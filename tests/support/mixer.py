"""The MoM layer as the paper defines it: a loop over rows, memories and documents; no packing, no chunk."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


def delta_rule_rows(rows: dict[str, Any], state, inside, forget, scale: float):
    """Outputs [S, longest, H, V] and final states [S, H, K, V] of q, k, v, g, beta [S, longest, H, ...] and ``state``.

    ``inside`` [S, longest] are the tokens, ``forget`` those before which everything is forgotten.
    """
    names = ("q", "k", "v", "g", "beta")
    xs = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), (*(rows[n] for n in names), forget, inside))

    def token(S, x):
        q, k, v, g, beta, forget, inside = x
        old = S
        S = jnp.where(forget[:, None, None, None], 0.0, S) * jnp.exp(g)[..., None, None]
        read = (S * k[..., :, None]).sum(-2)
        S = S + beta[..., None, None] * k[..., :, None] * (v - read)[..., None, :]
        out = scale * (S * q[..., :, None]).sum(-2)
        return jnp.where(inside[:, None, None, None], S, old), out

    final, out = jax.lax.scan(token, state, xs)
    return jnp.moveaxis(out, 0, 1), final


def dense_mixer(p: dict[str, Any], x, memories, found, *, heads: int, shared: bool, eps: float, max_beta: float):
    """Output [B, T, D] of the layer with parameters ``p`` by name; each ``found`` item starts empty.

    The items lie side by side, one row [S, longest, ...] for each, with nothing behind the end of a row.
    """
    split = lambda y: y.reshape(*y.shape[:-1], heads, -1)  # noqa: E731
    unit = lambda y: y / jnp.sqrt((y * y).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    lengths = np.array([len(tokens) for _, _, tokens in found])
    place = np.zeros((len(found), lengths.max()), int)
    for s, (_, _, tokens) in enumerate(found):
        place[s, : len(tokens)] = tokens
    inside = np.arange(lengths.max()) < lengths[:, None]
    row, number = np.array([b for _, b, _ in found])[:, None], np.array([memory for memory, _, _ in found])
    own = number if p["rule.k_proj"].shape[0] > 1 else np.zeros_like(number)
    seen = jnp.where(inside[..., None], x[row, place], 0)
    through = lambda weights: jnp.einsum("std,sdf->stf", seen, weights[own])  # noqa: E731

    def filtered(y, name):
        if f"rule.{name}_conv1d" not in p:
            return jax.nn.silu(y)
        weight = p[f"rule.{name}_conv1d"]
        taps = weight.shape[1]
        y = jnp.pad(y, ((0, 0), (taps - 1, 0), (0, 0)))
        return jax.nn.silu(sum(y[:, w : y.shape[1] - taps + 1 + w] * weight[:, w] for w in range(taps)))

    inputs = {
        "q": unit(split(filtered(seen @ p["rule.q_proj.weight"], "q"))),
        "k": unit(split(filtered(through(p["rule.k_proj"]), "k"))),
        "v": split(filtered(through(p["rule.v_proj"]), "v")),
        "g": jnp.zeros((*inside.shape, heads)),
        "beta": max_beta * jax.nn.sigmoid(through(p["rule.b_proj"])),
    }
    if "rule.a_proj" in p:
        inputs["g"] = -jnp.exp(p["rule.A_log"]) * jax.nn.softplus(through(p["rule.a_proj"]) + p["rule.dt_bias"])
    key_dim, value_dim = inputs["k"].shape[-1], inputs["v"].shape[-1]
    state = jnp.zeros((len(found), heads, key_dim, value_dim), x.dtype)
    read, _ = delta_rule_rows(inputs, state, inside, np.zeros_like(inside), key_dim**-0.5)

    weights, routed = jnp.ones(memories.shape), 1
    if "router.weight" in p:
        weights, routed = jax.nn.softmax(x @ p["router.weight"], -1), p["router.weight"].shape[1]
        weights = jnp.take_along_axis(weights, jnp.asarray(memories), -1)
        weights = weights / weights.sum(-1, keepdims=True)
    chosen = memories[row, place] == number[:, None, None]
    w = (weights[row, place] * chosen).sum(-1)
    w = jnp.where((shared & (number == routed))[:, None], 1.0, w) * inside
    o = jnp.zeros((*x.shape[:2], heads, value_dim), x.dtype).at[row, place].add(w[..., None, None] * read)
    o = o / jnp.sqrt((o * o).mean(-1, keepdims=True) + eps) * p["output.norm"]
    if "output.g_proj.weight" in p:
        o = o * jax.nn.silu(split(x @ p["output.g_proj.weight"]))
    return o.reshape(*x.shape[:2], -1) @ p["output.o_proj.weight"]
