"""Presets: the published sizes and a tiny one, each with every memory rule, and as the hybrids of today.

Importing this module does not import JAX.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

from mom_jax.errors import InputError
from mom_jax.models.attention_config import AttentionConfig
from mom_jax.models.config import MEMORY_RULES, MoMConfig


def mom_tiny() -> MoMConfig:
    """Byte-level demonstration model: trains in about two minutes on two CPU cores."""
    return MoMConfig(
        vocab_size=264,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=2,
        head_dim=32,
        hidden_ratio=3,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )


def mom_340m() -> MoMConfig:
    """The published 340M model (380M in the paper): 24 layers, hidden size 1024, 4 heads of 256."""
    return MoMConfig(hidden_size=1024, hidden_ratio=3, tie_word_embeddings=True)


def mom_1_3b() -> MoMConfig:
    """The published 1.3B model: 24 layers, hidden size 2048, 4 heads of 256."""
    return MoMConfig(hidden_size=2048, hidden_ratio=4, tie_word_embeddings=True)


_SIZES = {"mom-tiny": mom_tiny, "mom-340m": mom_340m, "mom-1.3b": mom_1_3b}
# Options of a rule's own paper that are not the defaults above. Heads stay those of the preset, so that
# rules are compared at one size of state.
_OF_RULE: dict[str, dict[str, Any]] = {
    "linear_attention": {"feature_map": "elu", "norm_feature_map": True},
    "gsa": {"gate_logit_normalizer": 8},
    "gated_deltaproduct": {"allow_neg_eigval": True},
    "raven": {"gate_logit_normalizer": 8},
    "mesanet": {"use_output_gate": False},
    "rwkv7": {"gate_low_rank_dim": 128},
}


def with_rule(config: MoMConfig, rule: str) -> MoMConfig:
    """The configuration with another memory rule, and the options of that rule's paper."""
    return dataclasses.replace(config, memory_rule=rule, **_OF_RULE.get(rule, {}))


def qwen3_next(config: MoMConfig) -> MoMConfig:
    """Three layers of gated delta memories, then gated attention; as in Qwen3-Next, but with mixtures and a SwiGLU."""
    channels = 128 if config.hidden_size >= 1024 else 64
    heads = config.hidden_size // channels
    shape: dict[str, Any] = {"num_heads": heads, "num_kv_heads": max(1, heads // 4), "head_dim": channels}
    attn = AttentionConfig(**shape, output_gate=True, qk_norm=True, rotary_fraction=0.25, rope_theta=1e7)
    return _three_to_one(config, attn)


def kimi_linear(config: MoMConfig) -> MoMConfig:
    """Three layers of Kimi delta memories, then attention without positions; as in Kimi Linear (arXiv 2510.26692).

    Its attention has keys and values of low rank (MLA), which are not available, and its MLP experts.
    """
    heads = config.hidden_size // (128 if config.hidden_size >= 1024 else 64)
    return _three_to_one(with_rule(config, "kda"), AttentionConfig(num_heads=heads, rotary_fraction=0.0))


def _three_to_one(config: MoMConfig, attn: AttentionConfig) -> MoMConfig:
    layers = -(-config.num_hidden_layers // 4) * 4
    return dataclasses.replace(config, num_hidden_layers=layers, layer_pattern="3m1a", attn=attn)


# What a preset may have besides a size: another memory rule, or a stack of today.
_CHANGES: dict[str, Callable[[MoMConfig], MoMConfig]] = {
    rule.replace("_", "-"): functools.partial(with_rule, rule=rule) for rule in MEMORY_RULES if rule != "gated_deltanet"
} | {"qwen3-next": qwen3_next, "kimi-linear": kimi_linear}
# Every size by itself and with every change: mom-340m, mom-340m-gla.
PRESETS: dict[str, Callable[[], MoMConfig]] = _SIZES | {
    f"{name}-{ending}": lambda size=size, change=change: change(size())
    for name, size in _SIZES.items()
    for ending, change in _CHANGES.items()
}


def preset_names() -> str:
    """All presets in one line of a help text."""
    sizes, endings = ", ".join(_SIZES), ", ".join(_CHANGES)
    return f"{sizes}, or one of these with another memory rule or stack, as mom-tiny-gla ({endings})"


def get_preset(name: str) -> MoMConfig:
    """The preset of that name; an unknown name raises `InputError` with the closest known ones."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, _SIZES) or difflib.get_close_matches(name, PRESETS) or list(_SIZES)
        raise InputError("preset", name, f"unknown; did you mean {' or '.join(close)}?")
    return PRESETS[name]()
