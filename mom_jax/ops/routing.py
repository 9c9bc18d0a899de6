"""Router decisions and how they are kept balanced.

The router and its load-balance loss are those of MoM (arXiv 2502.13685, section 3.2 and equations 4-6). Balancing
without a loss is that of Wang et al. (arXiv 2408.15664, equation 3 and algorithm 1), which DeepSeek-V3 took over
(arXiv 2412.19437, equation 16): with scores s and a bias b for each memory, a token chooses the top k of ``s + b``, but
mixes by ``s``; after each step ``b += rate * sign(mean load - load)``. Scores are the softmax's probabilities, or
sigmoids, as DeepSeek-V3 has them. The loss on the size of logits is that of ST-MoE (arXiv 2202.08906, equation 5).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.precision import wide, widened
from mom_jax.typing import AnyArray, Array, Bool, Float, Int, Mask, Shaped


class RouterOutput(NamedTuple):
    """Where each token is written, and how its reads are mixed: of the R routers of a layer, or of L layers stacked.

    A layer has one router, or more: of each head, of what is read; they follow each other.
    """

    logits: Float[Array, "R B T M"]  # float32, without noise
    weights: Float[Array, "R B T k"]  # float32, sums to 1 over k if renormalised
    memory_ids: Int[Array, "R B T k"]  # distinct memory indices in [0, M); -1: none
    load: Int[Array, "R B M"]  # tokens of each row that chose each memory; padding does not count
    energy: Float[Array, "layers B G"] | None = None  # squared norm of what each memory adds to a row's reads


Scores = Literal["softmax", "sigmoid"]
_LEAST = float(jnp.finfo(jnp.float32).min)


def route(
    logits: Float[Array, "*batch M"],
    top_k: int,
    bias: Float[Array, "*#batch M"] | None = None,
    *,
    scores: Scores = "softmax",
    renormalise: bool = True,
) -> tuple[Float[Array, "*batch {top_k}"], Int[Array, "*batch {top_k}"]]:
    """Scores of the memories, the top k of them, their weights, in float32: weights and memories.

    Ties go to the lower memory index.

    Args:
        logits: of the router.
        top_k: memories per token, k.
        bias: float32, added to the scores for the choice alone: weights are those of the same memories without
            it, and it gets no gradient.
        scores: softmax over the memories, or the sigmoid of each.
        renormalise: weights sum to 1. With ``top_k`` 1 they then are 1, and nothing that is read teaches the router.
    """
    memory_ids = largest(score(logits, scores), top_k, bias)
    return weigh(logits, memory_ids, scores=scores, renormalise=renormalise), memory_ids


def score(logits: Float[Array, "*batch M"], scores: Scores) -> Float[Array, "*batch M"]:
    """The scores, in float32 or wider."""
    logits = widened(logits)
    return jax.nn.softmax(logits, axis=-1) if scores == "softmax" else jax.nn.sigmoid(logits)


def largest(
    values: Float[Array, "*batch M"], top_k: int, bias: Float[Array, "*#batch M"] | None = None
) -> Int[Array, "*batch {top_k}"]:
    """A token's choice: the memories of the largest scores, with a bias if there is one."""
    values = jax.lax.stop_gradient(values if bias is None else values + bias)
    return jax.lax.top_k(values, top_k)[1]


def chosen_by_memories(
    values: Float[Array, "*batch T M"], top_k: int, attention_mask: Shaped[AnyArray, "*#batch T"] | None = None
) -> Int[Array, "*batch T M"]:
    """The memories' choice (arXiv 2202.09368, section 3): each takes the tokens of a row that score highest there.

    All take `expert_capacity` tokens and look at the whole row for it, so this is no choice for decoding. A token is
    chosen by any number of memories: those that did stand in the place of their number, -1 in the other places.

    Args:
        values: scores.
        top_k: memories that choose a token on average, k.
        attention_mask: 0 for tokens that count for nothing.
    """
    if attention_mask is not None:
        values = jnp.where((attention_mask != 0)[..., None], values, -1.0)
    *batch, time, memories = values.shape
    columns = jnp.swapaxes(jax.lax.stop_gradient(values), -1, -2).reshape(-1, time)
    _, tokens = jax.lax.top_k(columns, expert_capacity(time, top_k, memories))
    hits = jnp.zeros(columns.shape, bool).at[jnp.arange(columns.shape[0])[:, None], tokens].set(True)
    hits = jnp.swapaxes(hits.reshape(*batch, memories, time), -1, -2)
    return jnp.where(hits, jnp.arange(memories), -1)


def expert_capacity(time: int, top_k: int, memories: int) -> int:
    """Tokens of a row that each memory takes by `chosen_by_memories`."""
    return -(-time * top_k // memories)


def weigh(
    logits: Float[Array, "*batch M"], memory_ids: Int[Array, "*batch k"], *, scores: Scores, renormalise: bool
) -> Float[Array, "*batch k"]:
    """The weights of chosen memories, whoever chose them; 0 where an index is -1."""
    if not renormalise:
        return _taken(score(logits, scores), memory_ids)
    if scores == "sigmoid":
        chosen = _taken(score(logits, scores), memory_ids)
        return chosen / (chosen.sum(-1, keepdims=True) + 1e-9)  # they may all have underflowed
    # A softmax over the chosen logits alone: all their probabilities may have underflowed to 0.
    there = memory_ids >= 0
    chosen = jnp.where(there, _taken(widened(logits), memory_ids), _LEAST)
    return jnp.where(there, jax.nn.softmax(chosen, axis=-1), 0)


def probabilities(logits: Float[Array, "*batch M"], scores: Scores = "softmax") -> Float[Array, "*batch M"]:
    """Scores as a distribution over the memories, in float32; of sigmoids their shares."""
    if scores == "softmax":
        return jax.nn.softmax(widened(logits), axis=-1)
    # The softmax of log sigmoids: no sum of theirs underflows.
    return jax.nn.softmax(jax.nn.log_sigmoid(widened(logits)), axis=-1)


def _taken(x: Float[Array, "*batch M"], ids: Int[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """``x`` at distinct places: of few, by comparing, so that its gradient is no scatter."""
    is_there = ids[..., None] == jnp.arange(x.shape[-1])
    return jnp.where(is_there, x[..., None, :], 0).sum(-1)


def chosen_memories(memory_ids: Int[Array, "*batch k"], memories: int) -> Bool[Array, "*batch {memories}"]:
    """Which memories are among a token's."""
    return (memory_ids[..., None] == jnp.arange(memories)).any(-2)


def loads(
    memory_ids: Int[Array, "R B T k"], memories: int, attention_mask: Mask | None = None
) -> Int[Array, "R B {memories}"]:
    """Tokens of each row that chose each memory; those under the mask do not count."""
    hits = chosen_memories(memory_ids, memories)
    if attention_mask is not None:
        hits &= (attention_mask != 0)[..., None]
    return hits.sum(2, dtype=jnp.int32)


def router_output(
    logits: Float[Array, "R B T M"],
    top_k: int,
    attention_mask: Int[Array, "B T"] | None = None,
    bias: Float[Array, "R M"] | None = None,
) -> RouterOutput:
    """What routers with these logits decide, where the logits are all there is; ``bias`` as in `route`."""
    weights, memory_ids = route(logits, top_k, None if bias is None else bias[:, None, None])
    return RouterOutput(logits, weights, memory_ids, loads(memory_ids, logits.shape[-1], attention_mask))


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
    attention_mask: Int[Array, "B S"] | None = None,
) -> Float[Array, ""]:
    """Auxiliary load-balance loss of the Switch Transformer over all layers together.

    ``M * sum_m f_m P_m``: ``f_m`` is the share of tokens that choose memory m, summed over
    the k choices, and ``P_m`` the mean router probability. Balanced routing gives its
    minimum, k. Tokens with ``attention_mask == 0`` do not count.

    Args:
        router_logits: one array [B, T, M] for each MoM layer.
        top_k: memories per token.
        attention_mask: 1 for real tokens; of S >= T columns the last T are used.

    Returns:
        A float32 scalar, not yet scaled by ``aux_loss_scale``; 0 without MoM layers.
    """
    if not router_logits:
        return jnp.float32(0)
    logits = jnp.stack(router_logits)
    keep = None if attention_mask is None else attention_mask[:, -logits.shape[2] :]
    return auxiliary_loss(router_output(logits, top_k, keep), keep)


def auxiliary_loss(
    router: RouterOutput | None, attention_mask: Int[Array, "B T"] | None = None, scores: Scores = "softmax"
) -> Float[Array, ""]:
    """`load_balancing_loss` of the stacked decisions of all layers, made under the same mask; 0 without a router."""
    if router is None:
        return jnp.float32(0)
    shares = probabilities(router.logits, scores)
    keep = kept(router, attention_mask)
    count = jnp.maximum(keep.sum() * shares.shape[0], 1.0)
    fraction = router.load.sum((0, 1)) / count
    return shares.shape[-1] * jnp.dot(fraction, jnp.einsum("lbtm,bt->m", shares, keep) / count)


def router_z_loss(
    router: RouterOutput | None, attention_mask: Int[Array, "B T"] | None = None, scores: Scores = "softmax"
) -> Float[Array, ""]:
    """Mean square of a token's ``log sum exp(logits)``, which keeps logits small; 0 without a router.

    Of sigmoid scores, for which no such loss is published, it is the mean square of ``log(1 + exp(logit))``.
    """
    if router is None:
        return jnp.float32(0)
    logits, keep = widened(router.logits), kept(router, attention_mask)
    if scores == "softmax":
        squares = jax.nn.logsumexp(logits, axis=-1) ** 2
    else:
        squares = jnp.mean(jax.nn.softplus(logits) ** 2, axis=-1)
    return jnp.einsum("lbt,bt->", squares, keep) / jnp.maximum(keep.sum() * logits.shape[0], 1.0)


def kept(router: RouterOutput, attention_mask: Int[Array, "B T"] | None) -> Float[Array, "B T"]:
    """1 for tokens that count, else 0; in float32 or wider, as logits are."""
    if attention_mask is None:
        return jnp.ones(router.logits.shape[1:3], wide(router.logits.dtype))
    return (attention_mask != 0).astype(wide(router.logits.dtype))
