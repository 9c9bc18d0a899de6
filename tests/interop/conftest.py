"""Small models of every shape of checkpoint, and folders that hold them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.beside_pytorch import CONFIGS as CHECKED_THERE
from support.parameters import random_model

from mom_jax.interop.pretrained import save_pretrained
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM

SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8}
CONFIGS = CHECKED_THERE | {
    "single, not shared": {"single_kv_proj": True, "shared_mem": False},
    "hybrid": {"num_hidden_layers": 3, "attn": AttentionConfig(layers=(1,), num_heads=2, num_kv_heads=1)},
    "one memory": {"mixture": False, "expand_v": 1.5},
    "one memory, HGRN2": {"mixture": False, "memory_rule": "hgrn2"},
    "one memory, GSA": {"mixture": False, "memory_rule": "gsa", "num_slots": 5},
    "one memory, KDA": {"mixture": False, "memory_rule": "kda", "expand_v": 2.0},
    "one memory, DeltaProduct": {
        "mixture": False,
        "memory_rule": "gated_deltaproduct",
        "expand_v": 1.5,
        "rule_options": ("num_householder=3", "use_forget_gate=true"),
    },
    "one memory, DeltaProduct without decay": {
        "mixture": False,
        "memory_rule": "gated_deltaproduct",
        "rule_options": ("use_forget_gate=false",),
    },
    "one memory, Comba": {"mixture": False, "memory_rule": "comba", "expand_v": 1.5},
    "one memory, Raven": {"mixture": False, "memory_rule": "raven", "num_slots": 5, "expand_v": 1.5},
    "one memory, Raven by slots": {
        "mixture": False,
        "memory_rule": "raven",
        "use_output_gate": False,
        "rule_options": ('slot_decay="slot"', "slot_bias=false", "slot_top_k=7", 'slot_scores="softmax"'),
    },
    "transformer": {"attn": AttentionConfig(layers=(0, 1), num_heads=2, num_kv_heads=1, qkv_bias=True)},
}

MakeModel = Callable[..., MoMForCausalLM]


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> MoMConfig:
    """Each kind of model in turn."""
    return MoMConfig(**SIZES | {"intermediate_size": 24} | request.param)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A model whose parameters are all random, norms and convolutions included; the same at every call."""
    return lambda config=None: random_model(config or MoMConfig(**SIZES, intermediate_size=24))


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    """The defaults' model in a folder."""
    save_pretrained(make_model(), tmp_path / "saved")
    return tmp_path / "saved"
