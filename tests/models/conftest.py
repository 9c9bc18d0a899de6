"""One small model with random parameters, and its compiled call, shared by the tests of this folder."""

from collections.abc import Callable

import pytest
from support.calls import compiled
from support.parameters import random_model

from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM

SMALL = MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_heads=2, head_dim=8, expand_v=1.5,
                  intermediate_size=24, initializer_range=0.3)  # fmt: skip


@pytest.fixture(scope="session")
def small() -> MoMConfig:
    """V=12, K=8, two layers."""
    return SMALL


@pytest.fixture(scope="session")
def model() -> MoMForCausalLM:
    """The model of `small`; its mixers are larger than at initialisation, so that every part matters."""
    return random_model(SMALL)


@pytest.fixture(scope="session")
def call(model: MoMForCausalLM) -> Callable:
    """The compiled model: (ids, mask, documents, cache) to its output."""
    return compiled(model)
