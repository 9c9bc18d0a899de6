"""Several memories against one as large as all: table 4 of the paper.

    mom-jax experiment mixed-or-expanded --scale tiny        two CPU cores, minutes
    mom-jax experiment mixed-or-expanded --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment mixed-or-expanded --scale paper       32 GPUs, ten hours a model

The expanded memory has the total state of the mixture (four memories and the shared one), all of which every token
reads and writes. Tiny: synthetic recall, and bits per byte of source code. Small: recall of 16 pairs. Paper, averages
of recall and commonsense tasks: GLA mixed (395M) 23.53, 39.99, expanded (425M) 22.87, 38.90; Gated DeltaNet mixed
(444M) 28.16, 41.97, expanded (550M) 26.32, 41.32. The experiment `mqar` has the same question at equal active state
and at equal parameters.
"""

from mom_jax.models.baselines import expanded

from ..common.comparison import Comparison, Model

MODELS = {
    "Gated DeltaNet, mixed": Model(),
    "Gated DeltaNet, expanded": Model(expanded),
    "GLA, mixed": Model(rule="gla"),
    "GLA, expanded": Model(expanded, "gla"),
}

PAIRS = (("Gated DeltaNet, mixed", "Gated DeltaNet, expanded"), ("GLA, mixed", "GLA, expanded"))

EXPERIMENT = Comparison(MODELS, tiny=("recall", "text"), pairs=PAIRS).experiment
