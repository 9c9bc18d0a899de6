"""Random parameters that make every part matter, drawn by NumPy: no program is compiled for them."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from mom_jax.layers.mixer import MemoryMixer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.mixers import make_mixer


def randomised(abstract: nnx.Module, scale: float = 0.3, seed: int = 0) -> nnx.Module:
    """A module of shapes with normal parameters in their places; norms and the ``D`` of Mamba2 lie around 1.

    Lower bounds of forget gates are not negative.
    """
    graph, shapes = nnx.split(abstract)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(0, scale, leaf.shape) + ("norm" in name and "bias" not in name)
        return jax.device_put(np.float32(np.abs(values) if "lower_bound" in name else values))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def random_model(config: MoMConfig, scale: float = 0.3, seed: int = 0) -> MoMForCausalLM:
    """A model with `randomised` parameters."""
    model = randomised(nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0))), scale, seed)
    assert isinstance(model, MoMForCausalLM)
    return model


def random_mixer(scale: float, **fields: Any) -> MemoryMixer:
    """A memory layer of D=16, H=2, K=8, V=12 with `randomised` parameters; fields of a configuration replace these."""
    sizes = {"hidden_size": 16, "num_heads": 2, "head_dim": 8, "expand_v": 1.5, "num_hidden_layers": 1}
    config = MoMConfig(**sizes | fields)
    layer = randomised(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))), scale)
    assert isinstance(layer, MemoryMixer)
    return layer
