"""Balancing of routers between steps, without a loss (arXiv 2408.15664, algorithm 1)."""

from typing import Any

import jax

from mom_jax.models.config import MoMConfig
from mom_jax.ops.routing import balanced_bias


def balance_routers(params: Any, load: jax.Array | None, config: MoMConfig) -> Any:
    """The parameters with the bias of every router moved against its load; as they are where there is none.

    Args:
        params: all parameters of a model, as a tree.
        load: [L, M], each memory's share of a router's assignments in the step; None without a router.
        config: of the model.
    """
    if load is None or not config.has_router_bias:
        return params

    def move(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(key, "key", key) for key in path]
        if "router_bias" not in names:
            return leaf
        # leaf: [layers, columns of all routers of a layer]
        return balanced_bias(leaf.reshape(load.shape), load, config.router_bias_rate).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(move, params)


def balanced_from(fresh: dict[Any, Any], weights: dict[Any, Any]) -> dict[Any, Any]:
    """``weights`` of a model in nested dictionaries, and those of ``fresh`` that they lack: the bias of a router."""
    return {
        name: balanced_from(value, weights[name]) if isinstance(value, dict) else weights.get(name, value)
        for name, value in fresh.items()
    }
