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
from mom_jax.models.lm import MoMForCausalLM

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
    """

    name: str
    parameters: int = 0
    activated: int = 0
    state_bytes: int = 0
    forward: float = 0.0
    backward: float = 0.0

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
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    cache: Any = jax.eval_shape(lambda: model.init_cache(1, length))
    table = config.vocab_size * config.hidden_size
    costs = [Cost("embedding", table, table)]
    for number, kind in enumerate(config.layer_kinds):
        stack = model.blocks(kind)
        layers = config.layer_kinds.count(kind)
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(getattr(cache, kind))) // layers
        costs.append(_layer(f"layer {number} ({kind})", config, kind, stack, layers, length, state))
    head = 0 if config.tie_word_embeddings else table
    norm = config.hidden_size
    return [*costs, Cost("norm and output", head + norm, head + norm, 0, 2.0 * table, 2.0 * BACKWARD * table)]


def total(costs: list[Cost]) -> Cost:
    """The sum of all parts."""
    return sum(costs, Cost("total"))


def _layer(name, config, kind, stack, layers, length, state) -> Cost:
    sizes = {".".join(map(str, path)): leaf.get_value().shape[1:] for path, leaf in nnx.to_flat_state(nnx.state(stack))}
    share = dict.fromkeys(sizes, 1.0)
    inner: tuple[float, float] = (0.0, 0.0)
    if kind == "memory":
        mixer = stack.attn
        chosen = mixer.top_k + mixer.shared
        share |= {f"attn.rule.{part}": min(1.0, chosen / _slices(sizes, part)) for part in mixer.rule.per_memory}
        inner = _recurrence(mixer.rule, chosen, length)
    else:
        inner = _attention(config, length)
    parameters = sum(int(np.prod(shape)) for shape in sizes.values())
    activated = sum(round(np.prod(shape) * share[part]) for part, shape in sizes.items())
    products = sum(_products(part, shape, kind, stack) for part, shape in sizes.items())
    return Cost(name, parameters, activated, state, products + inner[0], BACKWARD * products + inner[1])


def _slices(sizes, part):
    return sizes[f"attn.rule.{part}"][0]


def _products(part, shape, kind, stack) -> float:
    """Forward FLOPs of one parameter for one token: of its matrix products and short convolutions."""
    if len(shape) < 2:
        return 0.0
    if kind == "attention":
        return 2.0 * np.prod(shape)
    chosen = stack.attn.top_k + stack.attn.shared
    name = part.rpartition(".")[2]
    if part.startswith("attn.rule.") and part.split(".")[2] in stack.attn.rule.per_row:
        return 2.0 * np.prod(shape) * chosen
    if name in stack.attn.rule.per_memory:  # with one projection for all memories a token is projected once
        return 2.0 * np.prod(shape[1:]) * (chosen if shape[0] > 1 else 1)
    return 2.0 * np.prod(shape)


def _recurrence(rule: MemoryRule, chosen: int, length: int) -> tuple[float, float]:
    forward, backward = rule.flops(rule.chunk_rows(length))
    return chosen * rule.sizes.num_heads * forward, chosen * rule.sizes.num_heads * backward


def _attention(config, length) -> tuple[float, float]:
    """Scores and sums over the keys that a query sees, on average."""
    window = min(config.attn.window_size or length, length)
    visible = window - window * (window - 1) / (2 * length)
    forward = 4.0 * config.hidden_size * visible
    return forward, BACKWARD * forward
