"""How routers spread tokens over the memories, for logs, reports and balancing."""

import jax
import jax.numpy as jnp

from mom_jax.ops.routing import RouterOutput, Scores, chosen_memories, kept, probabilities
from mom_jax.typing import AnyArray, Array, Bool, Float, Int

DEAD_SHARE = 0.01  # of the load of a balanced memory: below it a memory counts as dead


def router_statistics(
    router: RouterOutput | None, attention_mask: Int[Array, "B T"] | None = None, scores: Scores = "softmax"
) -> dict[str, Float[Array, "..."]]:
    """How each router spreads its tokens, and what memories give.

    Args:
        router: the stacked decisions of L routers, mostly one of each layer, made under the same mask.
        attention_mask: 0 for tokens that do not count.
        scores: of the router; of sigmoids the shares are meant.

    Returns:
        ``load`` [L, M]: each memory's share of a layer's assignments (a layer's shares sum to 1), and
        ``routing_entropy`` [L]: mean entropy of a token's distribution over all memories, in nats; float32 or wider.
        Where it is known, ``contribution`` [L, G]: each memory's share of the squared norms of what memories add to
        reads, the shared memory's last. Nothing without a router.
    """
    if router is None:
        return {}
    shares = probabilities(router.logits, scores)
    keep = kept(router, attention_mask)
    tokens = jnp.maximum(keep.sum(), 1.0)
    entropy = jax.scipy.special.entr(shares).sum(-1)
    # Whole numbers up to the division, so that loads do not depend on the order of summation, nor on the mesh.
    load = router.load.sum(1)
    statistics = {
        "load": load / jnp.maximum(load.sum(-1, keepdims=True), 1),
        "routing_entropy": jnp.einsum("lbt,bt->l", entropy, keep / tokens),
    }
    if router.energy is None:
        return statistics
    energy = router.energy.sum(1)
    return statistics | {"contribution": energy / jnp.maximum(energy.sum(-1, keepdims=True), 1e-30)}


def dead_memories(load: Float[AnyArray, "L M"]) -> Bool[AnyArray, "L M"]:
    """Which memories got less than `DEAD_SHARE` of a balanced load; ``load`` as of `router_statistics`."""
    return load < DEAD_SHARE / load.shape[-1]


def chosen_sets(router: RouterOutput, attention_mask: Int[Array, "B T"]) -> Bool[Array, "L B T M"]:
    """Each token's set of memories, empty where the mask is 0."""
    chosen = chosen_memories(router.memory_ids, router.logits.shape[-1])
    return chosen & (attention_mask != 0)[..., None]


def routing_churn(former: Bool[Array, "L B T M"], latter: Bool[Array, "L B T M"]) -> Int[Array, " L"]:
    """Tokens whose set of memories differs between two `chosen_sets` of the same tokens, in each layer."""
    return jnp.any(former != latter, -1).sum((1, 2))
