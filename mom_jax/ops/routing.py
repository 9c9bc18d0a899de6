"""Router decisions and how they are kept balanced.

The router and its load-balance loss are those of MoM (arXiv 2502.13685, section 3.2 and equations 4-6). Balancing
without a loss is that of Wang et al. (arXiv 2408.15664, equation 3 and algorithm 1), which DeepSeek-V3 took over
(arXiv 2412.19437, equation 16): with scores s and a bias b for each memory, a token chooses the top k of ``s + b``, but
mixes by ``s``; after each step ``b += rate * sign(mean load - load)``. Scores are here the softmax's probabilities.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Float, Int


class Routing(NamedTuple):
    """Where each token is written, and how its reads are mixed."""

    weights: Float[Array, "B T k"]  # float32, sums to 1 over k
    memories: Int[Array, "B T k"]  # distinct memory indices in [0, M)


def route(logits: Float[Array, "B T M"], top_k: int, bias: Float[Array, "M"] | None = None) -> Routing:
    """Softmax over the memories, top-k, renormalised over the chosen ones, in float32.

    Ties go to the lower memory index.

    Args:
        logits: of the router.
        top_k: memories per token, k.
        bias: float32, added to the probabilities for the choice alone: weights are those of the same memories without
            it, and it gets no gradient.
    """
    logits = logits.astype(jnp.float32)
    probabilities = jax.nn.softmax(logits, axis=-1)
    if bias is None:
        chosen, memories = jax.lax.top_k(probabilities, top_k)
        return Routing(chosen / chosen.sum(-1, keepdims=True), memories)
    _, memories = jax.lax.top_k(jax.lax.stop_gradient(probabilities + bias), top_k)
    # A softmax over the chosen logits alone: all their probabilities may have underflowed to 0.
    return Routing(jax.nn.softmax(jnp.take_along_axis(logits, memories, -1), axis=-1), memories)


def chosen_memories(
    logits: Float[Array, "L B T M"], top_k: int, bias: Float[Array, "L M"] | None = None
) -> Float[Array, "L B T M"]:
    """1 for the memories that a token chooses in each layer, 0 for the others, in float32; arguments as of `route`."""
    memories = jax.vmap(lambda layer, own: route(layer, top_k, own).memories)(logits, bias)
    return jax.nn.one_hot(memories, logits.shape[-1]).sum(-2)


def balanced_bias(bias: Float[Array, "L M"], load: Float[Array, "L M"], rate: float) -> Float[Array, "L M"]:
    """The bias of `route` after a step: up where the load is below the mean, down where it is above.

    Args:
        bias: before the step, of each layer.
        load: each memory's share of a layer's assignments in the step.
        rate: what a step moves.
    """
    return bias + rate * jnp.sign(1 / load.shape[-1] - load)


def load_balancing_loss(
    router_logits: tuple[Float[Array, "B T M"], ...],
    top_k: int,
    attention_mask: Int[Array, "B T"] | None = None,
    bias: Float[Array, "L M"] | None = None,
) -> Float[Array, ""]:
    """Auxiliary load-balance loss of the Switch Transformer over all layers together.

    ``M * sum_m f_m P_m``: ``f_m`` is the share of tokens that choose memory m, summed over
    the k choices, and ``P_m`` the mean router probability. Balanced routing gives its
    minimum, k. Tokens with ``attention_mask == 0`` do not count.

    Args:
        router_logits: one array [B, T, M] for each MoM layer.
        top_k: memories per token.
        attention_mask: [B, >=T], 1 for real tokens; the last T columns are used.
        bias: that of the choice, see `route`.

    Returns:
        A float32 scalar, not yet scaled by ``aux_loss_scale``; 0 without MoM layers.
    """
    if not router_logits:
        return jnp.float32(0)
    logits = jnp.stack(router_logits).astype(jnp.float32)
    num_memories = logits.shape[-1]
    chosen = chosen_memories(logits, top_k, bias)
    if attention_mask is None:
        keep = jnp.ones(logits.shape[1:-1], jnp.float32)
    else:
        keep = (attention_mask[:, -logits.shape[2] :] != 0).astype(jnp.float32)
    count = jnp.maximum(keep.sum() * logits.shape[0], 1.0)
    fraction = jnp.einsum("lbtm,bt->m", chosen, keep) / count
    probability = jnp.einsum("lbtm,bt->m", jax.nn.softmax(logits, axis=-1), keep) / count
    return num_memories * jnp.dot(fraction, probability)
