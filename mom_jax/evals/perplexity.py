"""Held-out loss, perplexity and bits per byte, by position; the load of each memory and how routing changes."""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.labels import IGNORE
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.router_statistics import chosen_sets, router_statistics, routing_churn
from mom_jax.trace_cache import kept
from mom_jax.typing import Batch

_ROUTING = ("load", "routing_entropy", "contribution")


def position_buckets(length: int) -> list[tuple[int, int]]:
    """Position ranges [start, stop) that double in width: 0-16, 16-32, 32-64, ... up to ``length``."""
    edges = [0]
    while edges[-1] < length:
        edges.append(min(max(16, 2 * edges[-1]), length))
    return list(itertools.pairwise(edges))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(graphdef: Any, routes: bool, params: Any, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """Sums over one batch: ``nats`` and ``tokens`` per position bucket; load and entropy weighted by ``inputs``.

    With ``routes`` also each token's set of memories, as `chosen_sets`, where there is a router.
    """
    model: MoMForCausalLM = nnx.merge(graphdef, params)
    segments, labels = batch["segment_ids"], batch["labels"]
    real = (segments > 0).astype(jnp.int32)
    hidden, router, _ = model.hidden_states(batch["input_ids"], attention_mask=real, segment_ids=segments)
    scored = model.token_nats(hidden, labels), (labels != IGNORE).astype(jnp.float32)
    buckets = position_buckets(labels.shape[1])
    nats, tokens = (jnp.stack([x[:, a:b].sum() for a, b in buckets]) for x in scored)
    inputs = real.sum()
    statistics = jax.tree.map(lambda x: x * inputs, router_statistics(router, real, model.config.router_scores))
    sets = chosen_sets(router, real) if routes and router is not None else None
    return {"nats": nats, "tokens": tokens, "inputs": inputs, **statistics}, sets


def evaluate(
    model: MoMForCausalLM,
    batches: Iterable[Batch],
    bytes_per_token: float,
    routes: list[jax.Array] | None = None,
) -> dict[str, Any]:
    """Scores a model on held-out batches.

    Args:
        model: its parameters may be sharded; then call this under ``jax.set_mesh``.
        batches: ``input_ids``, ``labels`` (-100: not scored) and ``segment_ids`` (0: padding), each int32 [B, T] and
            of one shape; a label is scored in the one window that holds it.
        bytes_per_token: bytes of held-out text per scored token, for ``bits_per_byte``.
        routes: gets each batch's sets of memories [L, B, T, M] (`chosen_sets`), of models with a router.

    Returns:
        JSON-ready: ``loss`` in nats per token, ``perplexity``, ``bits_per_byte``, ``tokens`` scored,
        ``by_position`` (``start``, ``stop``, ``tokens``, ``loss`` of each non-empty bucket), ``load`` [L][M] (shares of
        a layer's assignments), ``routing_entropy`` [L] in nats and ``contribution`` [L][G] (shares of what is read);
        the last three of models with a router.

    Raises:
        ValueError: no batch holds a label.
    """
    totals: dict[str, np.ndarray] = {}
    length = 0
    graphdef, params = nnx.split(model.without_conv_leak())
    static, score = (graphdef, routes is not None), None
    for batch in batches:
        length = batch["labels"].shape[1]
        score = score or kept(functools.partial(_score, *static), ("score", static), (params, batch))
        sums, sets = score(params, batch)
        if routes is not None and sets is not None:
            routes.append(sets)
        for name, value in sums.items():
            # float64 on the host: float32 sums would lose tokens beyond 2^24.
            totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
    if not totals or not totals["tokens"].sum():
        raise ValueError("the batches hold no label to score")
    tokens = float(totals["tokens"].sum())
    loss = float(totals["nats"].sum()) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "tokens": int(tokens),
        "by_position": [
            {"start": start, "stop": stop, "tokens": int(count), "loss": float(nats / count)}
            for (start, stop), nats, count in zip(
                position_buckets(length), totals["nats"], totals["tokens"], strict=True
            )
            if count
        ],
        **{name: (totals[name] / totals["inputs"]).tolist() for name in _ROUTING if name in totals},
    }


class HeldOut:
    """Scores a model that is being trained, again and again on the same batches; remembers how tokens were routed."""

    def __init__(self):
        self._former: list[jax.Array] = []  # sets of memories, batch by batch, on the devices

    def __call__(self, model: MoMForCausalLM, batches: Iterable[Batch]) -> dict[str, Any]:
        """Scores a model; arguments as of `evaluate`.

        Returns:
            JSON-ready: ``held_out_loss`` in nats per token and, of models with a router and from the second call on,
            ``routing_churn`` [L]: the share of tokens whose set of memories is not that of the call before.
        """
        routes: list[jax.Array] = []
        scores = {"held_out_loss": evaluate(model, batches, 1.0, routes)["loss"]}
        if self._former:
            pairs = zip(self._former, routes, strict=True)
            counts = [np.stack(jax.device_get(_changes(former, latter))) for former, latter in pairs]
            changed, tokens = np.sum(counts, 0)
            scores["routing_churn"] = (changed / tokens).tolist()
        self._former = routes
        return scores


@jax.jit
def _changes(former: jax.Array, latter: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens whose set changed, and all tokens; both [L]."""
    return routing_churn(former, latter), jnp.any(latter, -1).sum((1, 2))
