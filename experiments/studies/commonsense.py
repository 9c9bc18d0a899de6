"""Language modelling and common sense by architecture: table 7 of the paper.

    mom-jax experiment commonsense --scale tiny        two CPU cores, eight minutes
    mom-jax experiment commonsense --scale paper       32 GPUs: ten hours a model of 340M, six days one of 1.3B

Tiny: bits per byte of source code held out, two seeds. Paper: WikiText and LAMBADA perplexity, and the average of
LAMBADA, PIQA, HellaSwag, WinoGrande, ARC-e and ARC-c: at 380M and 1.3B Transformer++ 41.35, 49.93; RetNet 40.19,
48.81; HGRN2 41.46, 50.66; GLA 40.32, 49.24; GSA 40.67, 50.89; Gated DeltaNet 41.44, 49.58; MoM 41.97, 50.97
(`paper.COMMONSENSE`). The models are those of the experiment `recall`.
"""

from ..common.comparison import Comparison
from ..common.text import SIZES
from .recall import MODELS

EXPERIMENT = Comparison(MODELS, tiny=("text",), small=(), paper="commonsense-tasks", sizes=SIZES["paper"]).experiment
