"""The recurrences written down token by token over single segments, in float64.

Segments lie side by side in padded arrays [S, longest, ...], one row for each; nothing is
packed and no chunk exists here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]


def delta_rule_rows(rows: Arrays, state, inside, forget, scale: float):
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


def convolution(x, weight, state, lengths: Sequence[int], resets: Sequence[int]):
    """Causal convolution and SiLU of tokens [tokens, D], segment by segment, and each one's last inputs.

    ``state`` [S, W-1, D] holds the inputs before each segment; a reset hides everything before it.
    """
    taps, outputs, states, end = weight.shape[1], [], [], 0
    for s, n in enumerate(lengths):
        begin, end = end, end + n
        seen = jnp.concatenate([state[s], x[begin:end]])
        alive_from = 0
        for i in range(n):
            if begin + i in resets:
                alive_from = taps - 1 + i
            window = [
                seen[taps - 1 + i - w] * weight[:, taps - 1 - w] for w in range(taps) if taps - 1 + i - w >= alive_from
            ]
            outputs.append(jax.nn.silu(sum(window)))
        keep = jnp.arange(len(seen)) >= alive_from
        states.append(jnp.where(keep[:, None], seen, 0.0)[len(seen) - (taps - 1) :])
    return jnp.stack(outputs), jnp.stack(states)
