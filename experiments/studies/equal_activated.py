"""One memory with as many parameters at work for a token as in the mixture: table 9 of the paper.

    mom-jax experiment equal-activated --scale tiny        two CPU cores, minutes
    mom-jax experiment equal-activated --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment equal-activated --scale paper       32 GPUs, ten hours a model

The single memory's MLP is widened until a token activates as many parameters as in the mixture. Tiny: synthetic
recall, and bits per byte of source code. Small: recall of 16 pairs, as in `studies/capacity.py`. Paper at 400M
activated parameters, averages of recall and commonsense tasks: Gated DeltaNet 24.78, 41.44; MoM 26.51, 41.50.
"""

from mom_jax.models.baselines import single

from ..common.architectures import with_parameters_of
from ..common.comparison import Comparison, Model

MODELS = {"MoM": Model(), "Gated DeltaNet, wider MLP": Model(with_parameters_of), "Gated DeltaNet": Model(single)}

EXPERIMENT = Comparison(MODELS, tiny=("recall", "text")).experiment
