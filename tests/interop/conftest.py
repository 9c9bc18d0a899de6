"""Small models of every shape of checkpoint, and folders that hold them."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mom_jax.interop.pretrained import save_pretrained
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.structure import model_parts

SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8}
CONFIGS = {
    "defaults": {},
    "no shared": {"shared_mem": False},
    "single projection": {"single_kv_proj": True},
    "single, not shared": {"single_kv_proj": True, "shared_mem": False},
    "top-1 of 3": {"topk": 1, "num_memories": 3},
    "expanded values": {"expand_v": 2.0},
    "tied": {"tie_word_embeddings": True},
    "no gate": {"use_output_gate": False},
    "hybrid": {"num_hidden_layers": 3, "attn": AttentionConfig(layers=(1,), num_heads=2, num_kv_heads=1)},
    "one memory": {"mixture": False, "expand_v": 1.5},
    "one memory, DeltaNet": {"mixture": False, "memory_rule": "deltanet"},
    "one memory, HGRN2": {"mixture": False, "memory_rule": "hgrn2"},
    "one memory, GSA": {"mixture": False, "memory_rule": "gsa", "num_slots": 5},
    "one memory, KDA": {"mixture": False, "memory_rule": "kda", "expand_v": 2.0},
    "one memory, Mamba2": {"mixture": False, "memory_rule": "mamba2", "expand_v": 2.0, "intermediate_size": 0},
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
    "one memory, MesaNet": {"mixture": False, "memory_rule": "mesanet", "use_output_gate": False},
    "one memory, Raven": {"mixture": False, "memory_rule": "raven", "num_slots": 5, "expand_v": 1.5},
    "one memory, Raven by slots": {
        "mixture": False,
        "memory_rule": "raven",
        "use_output_gate": False,
        "rule_options": ('slot_decay="slot"', "slot_bias=false", "slot_top_k=7", 'slot_scores="softmax"'),
    },
    "one memory, Mamba-3": {"mixture": False, "memory_rule": "mamba3", "expand_v": 2.0, "intermediate_size": 0},
    "one memory, log-linear": {"mixture": False, "memory_rule": "log_linear_mamba2", "intermediate_size": None},
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

    def make(config: MoMConfig | None = None) -> MoMForCausalLM:
        parts, rng = model_parts(config or MoMConfig(**SIZES, intermediate_size=24)), np.random.default_rng(0)
        abstract = nnx.to_pure_dict(parts.abstract)
        return parts.merge(jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), abstract))

    return make


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    """The defaults' model in a folder."""
    save_pretrained(make_model(), tmp_path / "saved")
    return tmp_path / "saved"
