"""A mixture that begins as a trained model of single memories does."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Count, Range, check_fields
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.structure import model_parts


@dataclasses.dataclass(frozen=True)
class MixtureOptions:
    """What mixture is made."""

    num_memories: Annotated[int, Range(least=1, most=2**10)] = 4  # routed, M
    topk: Count = 2  # memories per token, k
    shared_mem: bool = True  # one more memory sees every token
    noise: Annotated[float, Range(least=0, most=1)] = 0.01  # of a routed memory's weights, over their deviation
    seed: int = 0  # of the noise

    def __post_init__(self):
        check_fields(self)


def mixture_of(single: MoMForCausalLM, options: MixtureOptions) -> MoMForCausalLM:
    """A mixture each of whose memories is a model's single memory, with a router of zeros.

    Routed memories' projections get noise; everything else, the shared memory included, is the model's own. Where
    logits are equal a token goes to the lowest memories, so at first all go to the same k, whose weights are 1/k.
    Without noise these read what the single memory read, and so does the shared one: the sum is that times 1, or 2
    with a shared memory, and the norm that follows takes the factor out again, for which its epsilon is made 4 times
    as large (HGRN2's is fixed and stays). So the mixture's logits are the model's, up to rounding; with noise, what the
    shared memory of the first memory layer reads is still the same, bit for bit.

    Raises:
        InputError: the model is a mixture already, has no memories, or does not norm what they read.
    """
    config = single.config
    if config.mixture or "memory" not in config.layer_kinds:
        problem = "is a mixture already" if config.mixture else "has no memory layers"
        raise InputError("src", config.memory_rule, f"{problem}; give a model of single memories")
    if options.shared_mem and not single.blocks("memory").attn.output.scale_free:
        remedy = "does not norm what memories read, so that it would change with a shared memory; use --no-shared-mem"
        raise InputError("src", config.memory_rule, remedy)
    fields = {"num_memories": options.num_memories, "topk": options.topk, "shared_mem": options.shared_mem}
    if options.shared_mem:
        fields["rule_options"] = (*config.rule_options, f"norm_eps={4 * config.norm_eps!r}")
    parts = model_parts(dataclasses.replace(config, mixture=True, **fields))
    key = jax.random.key(options.seed)
    return parts.merge(_filled(nnx.to_pure_dict(parts.abstract), nnx.to_pure_dict(nnx.state(single)), options, key))


def _filled(new: Mapping[str, Any], old: Mapping[str, Any], options: MixtureOptions, key: Any) -> dict[str, Any]:
    """Parameters of the shapes of ``new``: those of ``old``, for each memory if it has its own, 0 if there is none."""
    filled = {}
    for number, (name, leaf) in enumerate(sorted(new.items())):
        own_key = jax.random.fold_in(key, number)
        if isinstance(leaf, Mapping):
            filled[name] = _filled(leaf, old.get(name, {}), options, own_key)
        elif name not in old:
            filled[name] = jnp.zeros(leaf.shape, leaf.dtype)
        elif leaf.shape == old[name].shape:
            filled[name] = old[name]
        else:  # [layers, G, ...] of [layers, 1, ...]
            filled[name] = _for_each_memory(old[name], leaf.shape, options, own_key)
    return filled


def _for_each_memory(value: jax.Array, shape: tuple[int, ...], options: MixtureOptions, key: Any) -> jax.Array:
    spread = options.noise * jnp.std(value, axis=tuple(range(1, value.ndim)), keepdims=True)
    routed = (jnp.arange(shape[1]) < options.num_memories).reshape(1, -1, *[1] * (len(shape) - 2))
    return jnp.where(routed, value + spread * jax.random.normal(key, shape), value)
