"""Mixture-of-Memories (MoM, arXiv 2502.13685) in JAX and Flax NNX.

Names are imported on first use, so that ``mom-jax --help`` need not load JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mom_jax.decoding import generate, generate_many
    from mom_jax.inspection import inspect
    from mom_jax.interop.pretrained import load_pretrained, save_pretrained
    from mom_jax.layers.mixer import MemoryMixer
    from mom_jax.models.config import MoMConfig
    from mom_jax.models.lm import MoMForCausalLM
    from mom_jax.ops.routing import load_balancing_loss

__version__ = "0.1.0"

_HOME = {
    "MemoryMixer": "mom_jax.layers.mixer",
    "MoMConfig": "mom_jax.models.config",
    "MoMForCausalLM": "mom_jax.models.lm",
    "generate": "mom_jax.decoding",
    "generate_many": "mom_jax.decoding",
    "inspect": "mom_jax.inspection",
    "load_balancing_loss": "mom_jax.ops.routing",
    "load_pretrained": "mom_jax.interop.pretrained",
    "save_pretrained": "mom_jax.interop.pretrained",
}

__all__ = [
    "MemoryMixer",
    "MoMConfig",
    "MoMForCausalLM",
    "__version__",
    "generate",
    "generate_many",
    "inspect",
    "load_balancing_loss",
    "load_pretrained",
    "save_pretrained",
]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mom_jax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
