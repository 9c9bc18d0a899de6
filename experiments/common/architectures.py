"""A small mixture and what else its resources could buy; no experiment by itself."""

import dataclasses

from mom_jax.models.baselines import equal_active, expanded, single, transformer
from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import get_preset, with_rule

from ..registry import Point

# In the order of the plot: the name of a point, the label, the colour, which is the same in every plot.
ARCHITECTURES = {
    "mom": ("MoM", "C0"),
    "single": ("single memory", "C7"),
    "equal-active": ("single, equal active state", "C1"),
    "equal-total": ("single, equal total state in values", "C3"),
    "equal-total-keys": ("single, equal total state in keys", "C9"),
    "equal-total-heads": ("single, equal total state in heads", "C6"),
    "equal-parameters": ("single, equal active parameters", "C2"),
    "equal-all-parameters": ("single, equal total parameters", "C8"),
    "attention": ("attention", "C4"),
}
# those of equal state
COMPARED = tuple(name for name in ARCHITECTURES if not name.endswith("parameters"))


def mixture(point: Point) -> MoMConfig:
    """The mixture that a point's model is, or is measured by."""
    return dataclasses.replace(
        with_rule(get_preset("mom-tiny"), point.get("rule", "gated_deltanet")),
        vocab_size=point["vocab"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        hidden_size=point["hidden_size"],
        num_hidden_layers=point["num_layers"],
        num_heads=1,
        head_dim=point["head_dim"],
        expand_v=2.0,
        intermediate_size=0,
        num_memories=point["num_memories"],
        topk=2,
        use_short_conv=point["task"] == "mqar",  # fused tokens have nothing to carry to the next one
        num_slots=point["head_dim"],
    )


def architecture(name: str, config: MoMConfig) -> MoMConfig:
    """The model of that name beside a mixture."""
    memories = config.num_memories + config.shared_mem
    made = {
        "mom": lambda: config,
        "single": lambda: single(config),
        "equal-active": lambda: equal_active(config),
        "equal-total": lambda: expanded(config),
        "equal-total-keys": lambda: one_memory(config, keys=memories),
        "equal-total-heads": lambda: one_memory(config, heads=memories),
        "equal-parameters": lambda: with_parameters_of(config),
        "equal-all-parameters": lambda: with_parameters_of(config, "parameters"),
        "attention": lambda: transformer(config),
    }
    return made[name]()


def one_memory(config: MoMConfig, keys: int = 1, values: int = 1, heads: int = 1) -> MoMConfig:
    """One memory whose keys or values are as many times as wide as those of the mixture's, or with more heads."""
    key_dim, value_dim = keys * config.head_dim, values * config.head_v_dim
    sizes = {"head_dim": key_dim, "expand_v": value_dim / key_dim, "num_heads": heads * config.num_heads}
    return single(config, **sizes)


def with_parameters_of(config: MoMConfig, count: str = "activated") -> MoMConfig:
    """One memory of the mixture's size, with an MLP that makes up for the mixture's parameters.

    Args:
        config: the mixture.
        count: which of them: those that a token uses (``activated``), or all (``parameters``).
    """
    from mom_jax.models.accounting import account, total  # imports JAX

    def counted(model: MoMConfig) -> int:
        return getattr(total(account(model, 1)), count)

    alone = single(config)
    wider = dataclasses.replace(alone, intermediate_size=alone.mlp_dim + 1)
    norm = 0 if alone.mlp_dim else config.hidden_size * config.num_hidden_layers  # an MLP brings its norm
    one = counted(wider) - counted(alone) - norm
    missing = counted(config) - counted(alone)
    return dataclasses.replace(alone, intermediate_size=alone.mlp_dim + max(0, round((missing - norm) / one)))
