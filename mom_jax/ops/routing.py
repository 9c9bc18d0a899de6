"""Router decisions and the load-balance loss (MoM, arXiv 2502.13685, section 3.2 and equations 4-6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Float, Int


class Routing(NamedTuple):
    """Where each token is written, and how its reads are mixed."""

    weights: Float[Array, "B T k"]  # float32, sums to 1 over k
    memories: Int[Array, "B T k"]  # distinct memory indices in [0, M)


def route(logits: Float[Array, "B T M"], top_k: int) -> Routing:
    """Softmax over the memories, top-k, renormalised over the chosen ones, in float32.

    Ties go to the lower memory index.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    chosen, memories = jax.lax.top_k(probabilities, top_k)
    return Routing(chosen / chosen.sum(-1, keepdims=True), memories)


def load_balancing_loss(
    router_logits: tuple[Float[Array, "B T M"], ...],
    top_k: int,
    attention_mask: Int[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """Auxiliary load-balance loss of the Switch Transformer over all layers together.

    ``M * sum_m f_m P_m``: ``f_m`` is the share of tokens that choose memory m, summed over
    the k choices, and ``P_m`` the mean router probability. Balanced routing gives its
    minimum, k. Tokens with ``attention_mask == 0`` do not count.

    Args:
        router_logits: one array [B, T, M] for each MoM layer.
        top_k: memories per token.
        attention_mask: [B, >=T], 1 for real tokens; the last T columns are used.

    Returns:
        A float32 scalar, not yet scaled by ``aux_loss_scale``; 0 without MoM layers.
    """
    if not router_logits:
        return jnp.float32(0)
    logits = jnp.stack(router_logits).astype(jnp.float32)
    num_memories = logits.shape[-1]
    memories = route(logits.reshape(-1, *logits.shape[-2:]), top_k).memories.reshape(*logits.shape[:-1], top_k)
    chosen = jax.nn.one_hot(memories, num_memories).sum(-2)
    if attention_mask is None:
        keep = jnp.ones(logits.shape[1:-1], jnp.float32)
    else:
        keep = (attention_mask[:, -logits.shape[2] :] != 0).astype(jnp.float32)
    count = jnp.maximum(keep.sum() * logits.shape[0], 1.0)
    fraction = jnp.einsum("lbtm,bt->m", chosen, keep) / count
    probability = jnp.einsum("lbtm,bt->m", jax.nn.softmax(logits, axis=-1), keep) / count
    return num_memories * jnp.dot(fraction, probability)
