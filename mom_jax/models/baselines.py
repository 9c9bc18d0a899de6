"""The models that a mixture is compared with, derived from its configuration."""

import dataclasses
from typing import Any

from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.router_config import OF_MIXTURES


def single(config: MoMConfig, **sizes: Any) -> MoMConfig:
    """The same rule as one memory, of the same size but for ``sizes``; without what mixtures alone can do."""
    defaults = {f.name: f.default for f in dataclasses.fields(MoMConfig) if f.name in OF_MIXTURES}
    return dataclasses.replace(config, mixture=False, **defaults, **sizes)


def expanded(config: MoMConfig) -> MoMConfig:
    """One memory whose state is as large as all memories of the mixture together (paper, table 4).

    Values are widened, ``expand_v`` times the number of memories, the shared one included. TTT, whose
    values are as wide as its keys, gets that many times the heads.
    """
    return _larger(config, config.num_memories + config.shared_mem)


def equal_active(config: MoMConfig) -> MoMConfig:
    """One memory whose state is as large as what a token of the mixture reads and writes."""
    return _larger(config, config.topk + config.shared_mem)


def _larger(config: MoMConfig, times: int) -> MoMConfig:
    if config.memory_rule == "ttt":
        return single(config, num_heads=config.num_heads * times)
    return single(config, expand_v=config.expand_v * times)


def transformer(config: MoMConfig) -> MoMConfig:
    """Transformer++: attention in every layer, with heads of 64 channels (or one head where that does not divide)."""
    heads = config.hidden_size // 64 if config.hidden_size % 64 == 0 else 1
    attn = AttentionConfig(layers=tuple(range(config.num_hidden_layers)), num_heads=heads)
    return dataclasses.replace(config, attn=attn, attn_more=(), layer_pattern=None)


BASELINES = {"single": single, "expanded": expanded, "equal-active": equal_active, "transformer": transformer}


def get_baseline(name: str, config: MoMConfig) -> MoMConfig:
    """The baseline of that name for a mixture; `InputError` with all names for an unknown one."""
    if name not in BASELINES:
        raise InputError("baseline", name, f"choose one of {', '.join(BASELINES)}")
    return BASELINES[name](config)
