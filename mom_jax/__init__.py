"""Mixture-of-Memories (MoM, arXiv 2502.13685) in JAX and Flax NNX.

Names are imported on first use, so that ``mom-jax --help`` need not load JAX.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "MoMConfig": "mom_jax.models.config",
    "MoMForCausalLM": "mom_jax.models.lm",
    "generate": "mom_jax.generate",
    "load_balancing_loss": "mom_jax.ops.routing",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        # Kept, because importing the module ``mom_jax.generate`` binds its own name over the function's.
        globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return globals()[name]
    raise AttributeError(f"module 'mom_jax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
