"""How routers spread tokens over the memories, for logs and reports."""

import jax
import jax.numpy as jnp

from mom_jax.ops.routing import route
from mom_jax.typing import Array, Float, Int


def router_statistics(
    router_logits: tuple[Float[Array, "B T M"], ...], top_k: int, attention_mask: Int[Array, "B T"] | None = None
) -> dict[str, Float[Array, "..."]]:
    """Loads and entropy of each layer's router.

    Args:
        router_logits: one array [B, T, M] for each of L layers.
        top_k: memories per token, k.
        attention_mask: [B, T], 0 for tokens that do not count.

    Returns:
        ``load`` [L, M]: each memory's share of a layer's assignments (a layer's shares sum to 1), and
        ``routing_entropy`` [L]: mean entropy of a token's distribution over all memories, in nats; both float32.
        Nothing without a router.
    """
    if not router_logits:
        return {}
    logits = jnp.stack(router_logits).astype(jnp.float32)
    keep = (
        jnp.ones(logits.shape[1:3], jnp.float32)
        if attention_mask is None
        else (attention_mask != 0).astype(jnp.float32)
    )
    keep = keep / jnp.maximum(keep.sum(), 1.0)
    memories = jax.vmap(lambda layer: route(layer, top_k).memories)(logits)
    chosen = jax.nn.one_hot(memories, logits.shape[-1]).mean(-2)
    log_p = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    return {"load": jnp.einsum("lbtm,bt->lm", chosen, keep), "routing_entropy": jnp.einsum("lbt,bt->l", entropy, keep)}
