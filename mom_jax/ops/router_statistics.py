"""How routers spread tokens over the memories, for logs, reports and balancing."""

import jax
import jax.numpy as jnp

from mom_jax.ops.routing import chosen_memories
from mom_jax.typing import Array, Bool, Float, Int

DEAD_SHARE = 0.01  # of the load of a balanced memory: below it a memory counts as dead


def router_statistics(
    router_logits: tuple[Float[Array, "B T M"], ...],
    top_k: int,
    attention_mask: Int[Array, "B T"] | None = None,
    bias: Float[Array, "L M"] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Loads and entropy of each layer's router.

    Args:
        router_logits: one array [B, T, M] for each of L layers.
        top_k: memories per token, k.
        attention_mask: [B, T], 0 for tokens that do not count.
        bias: that of the choice, see `mom_jax.ops.routing.route`.

    Returns:
        ``load`` [L, M]: each memory's share of a layer's assignments (a layer's shares sum to 1), and
        ``routing_entropy`` [L]: mean entropy of a token's distribution over all memories, in nats; both float32.
        Nothing without a router.
    """
    if not router_logits:
        return {}
    logits = jnp.stack(router_logits).astype(jnp.float32)
    shape = logits.shape[1:3]
    keep = jnp.ones(shape, jnp.float32) if attention_mask is None else (attention_mask != 0).astype(jnp.float32)
    tokens = jnp.maximum(keep.sum(), 1.0)
    # Whole numbers up to the division, so that loads do not depend on the order of summation, nor on the mesh.
    counts = jnp.einsum("lbtm,bt->lm", chosen_memories(logits, top_k, bias), keep)
    log_p = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    return {"load": counts / (top_k * tokens), "routing_entropy": jnp.einsum("lbt,bt->l", entropy, keep / tokens)}


def dead_memories(load: Float[Array, "L M"]) -> Bool[Array, "L M"]:
    """Which memories got less than `DEAD_SHARE` of a balanced load; ``load`` as of `router_statistics`."""
    return load < DEAD_SHARE / load.shape[-1]


def chosen_sets(
    router_logits: tuple[Float[Array, "B T M"], ...],
    top_k: int,
    attention_mask: Int[Array, "B T"],
    bias: Float[Array, "L M"] | None = None,
) -> Bool[Array, "L B T M"]:
    """Each token's set of memories, empty where the mask is 0; arguments as of `router_statistics`."""
    return (chosen_memories(jnp.stack(router_logits), top_k, bias) * (attention_mask != 0)[..., None]) > 0


def routing_churn(former: Bool[Array, "L B T M"], latter: Bool[Array, "L B T M"]) -> Int[Array, "L"]:
    """Tokens whose set of memories differs between two `chosen_sets` of the same tokens, in each layer."""
    return jnp.any(former != latter, -1).sum((1, 2))
