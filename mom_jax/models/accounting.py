"""What a model costs: parameters, state and FLOPs, layer by layer, so that comparisons are fair.

FLOPs count a multiplication and an addition as two and leave out what is linear in the channels
(norms, gates, activations, rotations).
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.models.config import MoMConfig
from mom_jax.models.structure import build_model

BACKWARD = 2  # a matrix product's backward pass is two products of the same size


@dataclasses.dataclass(frozen=True)
class Cost:
    """One part of a model, or a sum of parts.

    Attributes:
        name: of the part.
        parameters: all of them.
        activated: those that one token uses; projections of memories it does not choose are left out.
        state_bytes: what decoding keeps for one sequence.
        forward, backward: FLOPs of one token, averaged over a sequence.
        recurrence, mlp: those of ``forward`` that are a recurrence's or attention's own, and the MLP's.
    """

    name: str
    parameters: int = 0
    activated: int = 0
    state_bytes: int = 0
    forward: float = 0.0
    backward: float = 0.0
    recurrence: float = 0.0
    mlp: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """The sum, under this name."""
        pairs = zip(dataclasses.astuple(self)[1:], dataclasses.astuple(other)[1:], strict=True)
        return Cost(self.name, *(a + b for a, b in pairs))


def account(config: MoMConfig, length: int) -> list[Cost]:
    """The costs of a model's parts in order: embedding, each layer, output.

    Args:
        config: of the model.
        length: tokens of a sequence, which the costs of attention depend on.
    """
    model = nnx.eval_shape(lambda: build_model(config, 0))
    cache: Any = jax.eval_shape(lambda: model.init_cache(1, length))
    table = config.vocab_size * config.hidden_size
    costs = [Cost("embedding", table, table)]
    for number, kind in enumerate(config.layer_kinds):
        stack = model.blocks(kind)
        layers = config.layer_kinds.count(kind)
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.kinds[kind])) // layers
        costs.append(_layer(f"layer {number} ({kind})", config, kind, stack, layers, length, state))
    head = 0 if config.tie_word_embeddings else table
    norm = config.hidden_size
    return [*costs, Cost("norm and output", head + norm, head + norm, 0, 2.0 * table, 2.0 * BACKWARD * table)]


def total(costs: list[Cost]) -> Cost:
    """The sum of all parts."""
    return sum(costs, Cost("total"))


def _layer(name, config, kind, stack, layers, length, state) -> Cost:
    rule = stack.attn.rule if kind == "memory" else None
    chosen = 1 if rule is None else stack.attn.rows_per_token
    if rule is None:
        inner = _attention(config.attention[kind], config.hidden_size, length)
    else:
        inner = _recurrence(rule, chosen, length)
    parameters, activated, products, mlp = 0, 0, 0.0, 0.0
    for path, leaf in nnx.to_flat_state(nnx.state(stack)):
        shape = leaf.get_value().shape[1:]
        size, slices, rows = int(np.prod(shape)), 1, 1
        if rule is not None and path[:2] == ("attn", "rule"):
            slices, rows = rule.slices_and_rows(path[2], chosen)
            slices = 1 if path[3:] == ("common",) else slices
        parameters += size
        activated += round(size * min(1.0, rows / slices))
        if len(shape) > 1 and path != ("attn", "initial_state"):  # a matrix, or the taps of a convolution
            products += 2.0 * size / slices * rows
            mlp += 2.0 * size * (path[0] == "mlp")
    forward, backward = products + inner[0], BACKWARD * products + inner[1]
    return Cost(name, parameters, activated, state, forward, backward, inner[0], mlp)


def _recurrence(rule: MemoryRule, chosen: int, length: int) -> tuple[float, float]:
    forward, backward = rule.flops(rule.chunk_rows(length))
    return chosen * rule.sizes.num_heads * forward, chosen * rule.sizes.num_heads * backward


def _attention(attn, hidden_size, length) -> tuple[float, float]:
    """Scores and sums over the keys that a query sees, on average."""
    window = min(attn.window_size or length, length)
    visible = window - window * (window - 1) / (2 * length)
    forward = 4.0 * attn.num_heads * attn.channels(hidden_size) * visible
    return forward, BACKWARD * forward
