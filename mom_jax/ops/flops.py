"""FLOPs of the chunk-parallel recurrences for one row and head: (forward, backward), of their matrix products.

A product with the state costs 2 K V for each row; products inside a chunk of C rows cost 2 C K, 2 C V
or 2 C^2. A multiplication and an addition are two FLOPs.
"""


def delta_rule_flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """Of `mom_jax.ops.delta_rule.delta_rule_chunked`."""
    state, inside = 2.0 * key_dim * value_dim, 2.0 * chunk * (key_dim + value_dim)
    forward = 3 * state + 2 * inside + (2 + 1 / 3) * 2.0 * chunk**2
    backward = 7 * state + 5 * inside + 2 * 2.0 * chunk**2
    return forward, backward


def scalar_decay_flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """Of `mom_jax.ops.scalar_decay.scalar_decay_chunked`; the backward pass runs the forward one again."""
    forward = 2 * 2.0 * key_dim * value_dim + 2.0 * chunk * (key_dim + value_dim) + 2.0 * chunk**2
    return forward, 3 * forward


def vector_decay_flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """Of `mom_jax.ops.vector_decay.vector_decay_chunked`; the backward pass runs the forward one again.

    The cuts that part pairs of rows form half of the C x C scores.
    """
    forward = 2 * 2.0 * key_dim * value_dim + 2.0 * chunk * (key_dim / 2 + value_dim)
    return forward, 3 * forward
