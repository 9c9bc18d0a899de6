"""The scale of the auxiliary loss, and the shared memory: table 6 of the paper.

    mom-jax experiment auxiliary-loss --scale tiny        two CPU cores, minutes
    mom-jax experiment auxiliary-loss --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment auxiliary-loss --scale paper       32 GPUs, ten hours a model

Small: recall of 16 pairs, as in `studies/capacity.py`. Paper, averages of recall and commonsense tasks: scale 1e-2
27.59, 42.10; 5e-3 26.55, 41.71; 1e-3 28.16, 41.97; 0 27.23, 41.58; without the shared memory 26.06, 40.38. What becomes
of the load without it is the experiment `load-balance`.
"""

from ..common.comparison import Comparison, changed

MODELS = {
    "scale 1e-2": changed(aux_loss_scale=1e-2),
    "scale 5e-3": changed(aux_loss_scale=5e-3),
    "scale 1e-3": changed(aux_loss_scale=1e-3),
    "scale 0": changed(aux_loss_scale=0.0),
    "no shared memory": changed(shared_mem=False),
}

EXPERIMENT = Comparison(MODELS, tiny=("recall",)).experiment
