"""Some layers of attention among the memories: table 8 of the paper.

    mom-jax experiment hybrid --scale tiny        two CPU cores, minutes
    mom-jax experiment hybrid --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment hybrid --scale paper       32 GPUs, ten hours a model

One attention layer for each seven of memories (3 of 24); of two layers, the second. Tiny: synthetic recall with two
layers, and bits per byte of source code. Small: recall of 16 pairs with two layers. Paper at 380M, averages of recall
and commonsense tasks: hybrid 37.80, 42.38; MoM 28.16, 41.97; Transformer++ 31.70, 41.35.
"""

import dataclasses

from mom_jax.models.baselines import transformer
from mom_jax.models.config import MoMConfig

from ..common.comparison import Comparison, Model


def hybrid(mixture: MoMConfig) -> MoMConfig:
    """The mixture with attention in every eighth layer, or in the last of fewer."""
    layers = mixture.num_hidden_layers
    chosen = tuple(range(min(8, layers) - 1, layers, 8))
    return dataclasses.replace(transformer(mixture), attn=dataclasses.replace(transformer(mixture).attn, layers=chosen))


MODELS = {"hybrid": Model(hybrid), "MoM": Model(), "Transformer++": Model(transformer)}

EXPERIMENT = Comparison(MODELS, tiny=("recall", "text"), recall_layers=2).experiment
