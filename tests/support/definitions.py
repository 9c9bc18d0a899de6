"""Memory rules as their papers define them: one memory, one row, one token after the other, in NumPy and float64.

Each function takes a rule's parameters by name, as single memories have them, the layer's input [T, D] and its sizes,
and returns what the memory is read for: [T, H, V].
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from mom_jax.layers.rules.rule import RuleSizes

Parameters = dict[str, np.ndarray]


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def silu(x):
    """``x sigmoid(x)``."""
    return x * sigmoid(x)


def softplus(x):
    """``log(1 + e^x)``."""
    return np.logaddexp(0, x)


def unit(x):
    """L2-normalised along the last axis."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def convolved(x, taps, bias=0.0):
    """A causal convolution along time, then SiLU."""
    padded = np.pad(x, ((taps.shape[1] - 1, 0), (0, 0)))
    return silu(sum(padded[w : w + len(x)] * taps[:, w] for w in range(taps.shape[1])) + bias)


def turned(x, position, theta=10000.0):
    """Rotary embedding along the last axis, channel pair by channel pair, as complex numbers."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


def queries_keys_values(p: Parameters, x, sizes: RuleSizes, keys: int = 1):
    """Projected and convolved: q [T, H, K], k [T, H, keys, K] and v [T, H, keys, V]."""
    weights = {"q": p["q_proj.weight"], "k": p["k_proj"][0], "v": p["v_proj"][0]}
    q, k, v = (convolved(x @ weight, p[f"{name}_conv1d"]) for name, weight in weights.items())
    shape = len(x), sizes.num_heads, keys
    return q.reshape(*shape[:2], -1), k.reshape(*shape, sizes.head_k_dim), v.reshape(*shape, sizes.head_v_dim)


def log_decay(p: Parameters, logits):
    """Of each head, or of each channel of a head: -exp(A_log) softplus(logits + dt_bias)."""
    steps = softplus(logits + p["dt_bias"]).reshape(len(logits), len(p["A_log"]), -1)
    return -np.exp(p["A_log"])[:, None] * steps


def gated_deltanet2(p: Parameters, x, sizes: RuleSizes):
    """Decay, erase with b what k holds, write w v at k."""
    q, k, v = queries_keys_values(p, x, sizes)
    q, k, v = unit(q), unit(k)[:, :, 0], v[:, :, 0]
    b, w = sigmoid(x @ p["b_proj"][0]).reshape(k.shape), sigmoid(x @ p["w_proj"][0]).reshape(v.shape)
    g = log_decay(p, x @ p["f_down"][0] @ p["f_up"][0])
    reads = np.zeros_like(v)
    for h in range(sizes.num_heads):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(len(x)):
            state = np.exp(g[t, h])[:, None] * state
            state = state - np.outer(k[t, h], state.T @ (b[t, h] * k[t, h])) + np.outer(k[t, h], w[t, h] * v[t, h])
            reads[t, h] = state.T @ q[t, h] / np.sqrt(k.shape[-1])
    return reads


def gated_deltaproduct(p: Parameters, x, sizes: RuleSizes, steps: int = 3):
    """One decay, then a delta step for each key; the last state is read. Without a decay it never forgets."""
    q, k, v = queries_keys_values(p, x, sizes, steps)
    q, k = unit(q), unit(k)
    beta = 2 * sigmoid(x @ p["b_proj"][0]).reshape(k.shape[:3])
    g = log_decay(p, x @ p["a_proj"][0]) if "a_proj" in p else np.zeros((*q.shape[:2], 1))
    reads = np.zeros((*q.shape[:2], v.shape[-1]))
    for h in range(sizes.num_heads):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(len(x)):
            state = np.exp(g[t, h]) * state
            for j in range(steps):
                state = state + beta[t, h, j] * np.outer(k[t, h, j], v[t, h, j] - state.T @ k[t, h, j])
            reads[t, h] = state.T @ q[t, h] / np.sqrt(k.shape[-1])
    return reads


def erase_then_delta(p: Parameters, x, sizes: RuleSizes):
    """Decay, erase what e holds, then the delta rule at k."""
    q, k, v = queries_keys_values(p, x, sizes)
    q, k, v = unit(q), unit(k)[:, :, 0], v[:, :, 0]
    e, gamma, beta = (
        unit((x @ p["e_proj"][0]).reshape(k.shape)),
        *(sigmoid(x @ p[n][0]) for n in ("erase_proj", "b_proj")),
    )
    g, one = log_decay(p, x @ p["a_proj"][0]), np.eye(k.shape[-1])
    reads = np.zeros_like(v)
    for h in range(sizes.num_heads):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(len(x)):
            erase, write = (one - s[t, h] * np.outer(y[t, h], y[t, h]) for s, y in ((gamma, e), (beta, k)))
            state = write @ erase @ (np.exp(g[t, h]) * state) + beta[t, h] * np.outer(k[t, h], v[t, h])
            reads[t, h] = state.T @ q[t, h] / np.sqrt(k.shape[-1])
    return reads


def comba(p: Parameters, x, sizes: RuleSizes, feedback_decay: bool = False):
    """What p reads before the decay is taken from the value."""
    q, k, v = queries_keys_values(p, x, sizes)
    k, v, share = k[:, :, 0], v[:, :, 0], sigmoid(p["decay"])[:, None]
    q, feedback = unit(q - p["D"][:, None] * share * k), share * unit(k) if feedback_decay else unit(share * k)
    k, beta, g = unit(k), sigmoid(x @ p["b_proj"][0]), log_decay(p, x @ p["a_proj"][0])
    reads = np.zeros_like(v)
    for h in range(sizes.num_heads):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(len(x)):
            error = v[t, h] - state.T @ feedback[t, h]
            state = np.exp(g[t, h]) * state + beta[t, h] * np.outer(k[t, h], error)
            reads[t, h] = state.T @ q[t, h] / np.sqrt(k.shape[-1])
    return reads


def mamba3(p: Parameters, x, sizes: RuleSizes, rational: bool = False):
    """Both ends of the interval between two tokens are written; pairs of channels are complex numbers that turn."""
    heads, keys = sizes.num_heads, sizes.head_k_dim
    v = (x @ p["v_proj"][0]).reshape(len(x), heads, -1)
    step, rate, share = (x @ p["gate_proj"][0]).reshape(len(x), heads, 3).transpose(2, 0, 1)
    rate = np.where(rate >= 0, 1 + rate, 1 / (1 - np.minimum(rate, 0))) if rational else softplus(rate)
    step, share = softplus(step + p["dt_bias"]), sigmoid(share)
    turns = np.pi * np.tanh(x @ p["angle_proj"][0])[:, None] * step[..., None]
    theta, pairs = np.cumsum(turns, 0), turns.shape[-1]

    def turned(weight, norm, bias):
        y = x @ weight
        y = (y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * norm)[:, None] + bias
        z = y.reshape(len(x), heads, keys // 2, 2) @ np.array([1, 1j])
        z[..., :pairs] *= np.exp(1j * theta)
        return np.stack([z.real, z.imag], -1).reshape(y.shape)

    q = turned(p["q_proj.weight"], p["q_norm"], p["q_bias"])
    k = turned(p["k_proj"][0], p["k_norm"], p["k_bias"])
    reads = np.zeros_like(v)
    for h in range(heads):
        state = np.zeros((keys, v.shape[-1]))
        for t in range(len(x)):
            alpha = np.exp(-max(rate[t, h], 1e-4) * step[t, h])
            state = alpha * state + share[t, h] * step[t, h] * np.outer(k[t, h], v[t, h])
            if t:
                state = state + alpha * (1 - share[t, h]) * step[t, h] * np.outer(k[t - 1, h], v[t - 1, h])
            reads[t, h] = state.T @ q[t, h] + p["D"][h] * v[t, h]
    return reads


def largest(scores, count: int):
    """1 at the largest few of a row, 0 elsewhere."""
    mask = np.zeros_like(scores)
    mask[np.argsort(-scores, kind="stable")[:count]] = 1
    return mask


def raven(p: Parameters, x, sizes: RuleSizes, slots: int = 6, moved: int = 2, softmax: bool = False):
    """A token moves the slots that it chooses towards its key and value."""
    heads, keys = sizes.num_heads, sizes.head_k_dim
    norm = lambda y, w: y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * w  # noqa: E731
    q = norm(silu(x @ p["q_proj.weight"]).reshape(-1, heads, keys), p["q_norm"])
    k = norm(silu(x @ p["k_proj"][0]).reshape(-1, heads, keys), p["k_norm"])
    v = silu(x @ p["v_proj"][0]).reshape(len(x), heads, -1)
    logits, a = (x @ p["r_proj"][0]).reshape(-1, heads, slots), x @ p["decay_proj"][0]
    a = log_decay(p, a) if "A_log" in p else -softplus(-a.reshape(-1, heads, slots)) / 16
    bias, reads = p["r_bias"].reshape(heads, slots), np.zeros_like(v)
    for h in range(heads):
        of_keys, of_values = np.zeros((slots, keys)), np.zeros((slots, v.shape[-1]))
        for t in range(len(x)):
            m = np.exp(logits[t, h]) / np.exp(logits[t, h]).sum() if softmax else sigmoid(logits[t, h])
            r = m * largest(m + bias[h], moved)
            kept = np.exp(a[t, h] * (r if softmax else r / r.sum()))[:, None]
            of_keys = kept * of_keys + (1 - kept) * k[t, h]
            of_values = kept * of_values + (1 - kept) * v[t, h]
            weights = np.exp(of_keys @ q[t, h])
            reads[t, h] = of_values.T @ (weights / weights.sum())
    return reads


def sse(p: Parameters, x, sizes: RuleSizes, partitions: int = 3, chosen: int = 2, written: int = 5):
    """Partition 0 sees all tokens, the others those that chose them; rows that are not written stay."""
    heads, keys = sizes.num_heads, sizes.head_k_dim
    split = lambda y: y.reshape(len(x), heads, -1)  # noqa: E731
    q, k, v = split(x @ p["q_proj.weight"]), split(x @ p["k_proj"][0]), silu(split(x @ p["v_proj"][0]))
    queries = silu(q), silu(q + split(x @ p["q_down.weight"] @ p["q_up.weight"]))
    logits = k, k + split(x @ p["k_down"][0] @ p["k_up"][0])
    gates = -softplus(-split(x @ p["gk_down"][0] @ p["gk_up"][0] + p["gk_bias"][0])) / 16
    shares = np.exp(x @ p["e_proj"][0])
    shares = shares / shares.sum(-1, keepdims=True)
    reads = np.zeros_like(v)
    for h in range(heads):
        state = np.zeros((partitions + 1, keys, v.shape[-1]))
        for t in range(len(x)):
            share = np.concatenate([[1.0], shares[t] * largest(shares[t], chosen)])
            for i in np.flatnonzero(share):
                kind = min(i, 1)
                rows = largest(logits[kind][t, h], written)
                key = np.exp(logits[kind][t, h]) * rows
                key = key / key.sum()
                g = gates[t, h, kind * keys : (kind + 1) * keys] * rows
                state[i] = np.exp(g)[:, None] * state[i] + share[i] * np.outer(key, v[t, h])
                reads[t, h] += share[i] * state[i].T @ queries[kind][t, h] / np.sqrt(keys)
    return reads


def by_levels(p: Parameters, x, q, k, v, g, levels: int):
    """Every pair of tokens, weighed by its level and the decays between, [T, H] or [T, H, K]."""
    weights = softplus(p["level_scale"] * (x @ p["level_proj"][0]).reshape(len(x), -1, levels))
    reads = np.zeros_like(v)
    for t in range(len(x)):
        for i in range(t + 1):
            score = (q[t] * k[i] * np.exp(g[i + 1 : t + 1].sum(0))).sum(-1)
            reads[t] += (weights[t, :, (t ^ i).bit_length()] * score)[:, None] * v[i]
    return reads


def log_linear_mamba2(p: Parameters, x, sizes: RuleSizes, levels: int = 6):
    """Values times their steps, one decay for a head, and the token's own value besides."""
    weights = {"q": p["q_proj.weight"], "k": p["k_proj"][0], "v": p["v_proj"][0]}
    q, k, v = (convolved(x @ w, p[f"{n}_conv1d"], p[f"{n}_conv1d_bias"]) for n, w in weights.items())
    step, v = softplus(x @ p["dt_proj"][0] + p["dt_bias"]), v.reshape(len(x), sizes.num_heads, -1)
    g = (-np.exp(p["A_log"]) * step)[..., None]
    return by_levels(p, x, q[:, None], k[:, None], step[..., None] * v, g, levels) + p["D"][:, None] * v


def log_linear_gla(p: Parameters, x, sizes: RuleSizes, levels: int = 6):
    """A decay for each key channel."""
    q, k, v = queries_keys_values(p, x, sizes)
    gates = (x @ p["gk_down"][0] @ p["gk_up"][0] + p["gk_bias"][0]).reshape(q.shape)
    return by_levels(p, x, q, k[:, :, 0], v[:, :, 0], -softplus(-gates) / 16, levels) / np.sqrt(q.shape[-1])


def mesanet(p: Parameters, x, sizes: RuleSizes):
    """Two sums over all that was written, and a solve for each read."""
    shape = len(x), sizes.num_heads, -1
    q = unit(convolved(x @ p["q_proj.weight"], p["q_conv1d"]).reshape(shape))
    k = unit(convolved(x @ p["k_proj"][0], p["k_conv1d"]).reshape(shape))
    v, ridge = (x @ p["v_proj"][0]).reshape(shape), softplus(p["ridge"]).reshape(sizes.num_heads, -1) + 0.25
    alpha, beta = (sigmoid(x @ p[f"{name}_proj"][0] + p[f"{name}_bias"][0]) for name in "ab")
    reads = np.zeros_like(v)
    for h, t in itertools.product(range(sizes.num_heads), range(len(x))):
        weight = beta[: t + 1, h] * np.exp(sum_after(np.log(alpha[: t + 1, h])))
        gram = (weight[:, None] * k[: t + 1, h]).T @ k[: t + 1, h] + np.diag(ridge[h])
        reads[t, h] = np.linalg.solve(gram, q[t, h]) @ (weight[:, None] * k[: t + 1, h]).T @ v[: t + 1, h]
    return reads


def sum_after(x):
    """Of all that comes later."""
    return x.sum() - np.cumsum(x)


def sparse_delta_memory(p: Parameters, x, sizes: RuleSizes, side: int = 4, few: int = 3, local: bool = False):
    """A table of slots, of which a token decays and corrects few, and reads others."""
    v, g = (x @ p["v_proj"][0]).reshape(len(x), sizes.num_heads, -1), log_decay(p, x @ p["a_proj"][0])[..., 0]
    beta, reads = sigmoid(x @ p["b_proj"][0]), np.zeros_like(v)
    slots = [(x @ weight).reshape(len(x), sizes.num_heads, 2, side) for weight in (p["q_proj.weight"], p["k_proj"][0])]
    for h in range(sizes.num_heads):
        table = np.zeros((side * side, v.shape[-1]))
        for t in range(len(x)):
            weights = []
            for logits in slots:
                sums = (logits[t, h, 0][:, None] + logits[t, h, 1]).reshape(-1)
                chosen = np.exp(sums) * largest(sums, few)
                weights.append(chosen / chosen.sum())
            read, write = weights
            table[write > 0] *= np.exp(g[t, h])
            error = v[t, h] - (table if local else write @ table)
            table = table + beta[t, h] * write[:, None] * error
            reads[t, h] = read @ table
    return reads


DEFINITIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gated_deltanet2": (gated_deltanet2, {}),
    "gated_deltaproduct": (
        gated_deltaproduct,
        {"rule_options": ("num_householder=3",), "allow_neg_eigval": True},
    ),
    "gated_deltaproduct, no gate": (
        gated_deltaproduct,
        {"rule_options": ("num_householder=3", "use_forget_gate=false"), "allow_neg_eigval": True},
    ),
    "comba": (comba, {}),
    "erase_then_delta": (erase_then_delta, {}),
    "mesanet": (mesanet, {}),
    "log_linear_mamba2": (log_linear_mamba2, {"rule_options": ("log_linear_levels=6",)}),
    "log_linear_gla": (log_linear_gla, {"rule_options": ("log_linear_levels=6",)}),
    "sparse_delta_memory": (
        sparse_delta_memory,
        {"rule_options": ("table_slots=16", "slot_writes=3", "slot_reads=3")},
    ),
    "sparse_delta_memory, local": (
        functools.partial(sparse_delta_memory, local=True),
        {"rule_options": ("table_slots=16", "slot_writes=3", "slot_reads=3", 'residual="local"')},
    ),
    "sse": (sse, {"rule_options": ("partitions=3", "partition_top_k=2", "row_top_k=5")}),
    "raven": (raven, {"num_slots": 6, "rule_options": ("slot_top_k=2",)}),
    "raven, softmax": (
        functools.partial(raven, softmax=True, moved=3),
        {"num_slots": 6, "rule_options": ("slot_top_k=3", 'slot_scores="softmax"', 'slot_decay="slot"')},
    ),
    "mamba3": (mamba3, {}),
    "mamba3, rational": (
        functools.partial(mamba3, rational=True),
        {"rule_options": ('rate="rational"', "rope_fraction=1")},
    ),
    "comba, feedback": (
        functools.partial(comba, feedback_decay=True),
        {"rule_options": ("feedback_decay=true",)},
    ),
}
