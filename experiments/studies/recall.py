"""Recall by architecture: table 2 of the paper.

    mom-jax experiment recall --scale tiny        two CPU cores, minutes
    mom-jax experiment recall --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment recall --scale paper       32 GPUs: ten hours a model of 340M, six days one of 1.3B

Tiny and small: synthetic recall in fused tokens, as in `studies/capacity.py`. Paper: models trained on SlimPajama and
asked FDA, SWDE, SQuAD, NQ, TriviaQA and DROP, inputs cut to 2K tokens. Its averages at 380M and 1.3B: Transformer++
31.70, 37.31; RetNet 17.19, 26.45; HGRN2 21.14, 27.13; GLA 21.71, 31.93; GSA 19.77, 32.05; Gated DeltaNet 24.78,
32.30; MoM 28.16, 36.04. Every task's number is in `paper.RECALL`.
"""

from mom_jax.models.baselines import single, transformer

from ..common.comparison import Comparison, Model
from ..common.text import SIZES

MODELS = {
    "MoM": Model(),
    "Gated DeltaNet": Model(single),
    "GSA": Model(single, "gsa"),
    "GLA": Model(single, "gla"),
    "HGRN2": Model(single, "hgrn2"),
    "RetNet": Model(single, "retnet"),
    "Transformer++": Model(transformer),
}

EXPERIMENT = Comparison(MODELS, tiny=("recall",), paper="recall-tasks", sizes=SIZES["paper"]).experiment
