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


def rank_one_decay_flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """Of `mom_jax.ops.rank_one_decay.rank_one_decay_chunked`; the cuts of decayed scores form half of them."""
    state, values, scores = 2.0 * key_dim * value_dim, 2.0 * chunk * value_dim, 4 * 2.0 * chunk * key_dim / 2
    forward = 4 * state + 4 * values + scores + (1 + 1 / 3) * 2.0 * chunk**2
    backward = 10 * state + 8 * values + 3 * scores
    return forward, backward


def gated_slots_flops(chunk: int, key_dim: int, value_dim: int, slots: int) -> tuple[float, float]:
    """Of `mom_jax.ops.gated_slots.gated_slots_chunked`; the backward pass runs the forward one again."""
    keys = 2 * 2.0 * key_dim * slots + 2.0 * chunk * (key_dim + slots / 2)
    forward = keys + vector_decay_flops(chunk, slots, value_dim)[0]
    return forward, 3 * forward


def fast_weights_flops(window: int, key_dim: int, value_dim: int, matrices: int) -> tuple[float, float]:
    """Of `mom_jax.ops.fast_weights.run_windows`; the backward pass runs the forward one again.

    Gradients are taken at three places (the base, the base behind a border, the start) and the
    state has ``matrices`` matrices.
    """
    state = 2.0 * key_dim * value_dim
    per_window = (matrices + matrices**2) * state / window
    forward = (3 + 2 * matrices) * state + per_window + 2.0 * window * (key_dim + value_dim)
    return forward, 3 * forward
