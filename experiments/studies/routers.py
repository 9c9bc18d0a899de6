"""The parts of a router, one changed at a time: scores, weights, what keeps loads even, and how many memories.

    mom-jax experiment routers --scale tiny        two CPU cores, nine minutes
    mom-jax experiment routers --scale paper       32 GPUs, ten hours a model

Tiny: synthetic recall of 8 pairs, three seeds. The paper's router is a softmax whose largest two are made to sum to 1,
balanced by the auxiliary loss. With one memory for each token such weights are 1, so what is read does not teach the
router: `top-1, weights as scored` lets it.
"""

import dataclasses
from typing import Any

from ..common.comparison import Comparison, Model


def changed(**fields: Any) -> Model:
    """The mixture with other fields of its configuration."""
    return Model(lambda mixture: dataclasses.replace(mixture, **fields))


MODELS = {
    "the paper's": Model(),
    "weights as scored": changed(router_renormalise=False),
    "sigmoid": changed(router_scores="sigmoid"),
    "sigmoid, weights as scored": changed(router_scores="sigmoid", router_renormalise=False),
    "loss on logits": changed(router_z_loss_scale=1e-3),
    "loss-free balance": changed(router_balance="loss_free"),
    "sigmoid, loss-free balance": changed(router_scores="sigmoid", router_balance="loss_free"),
    "top-1": changed(topk=1),
    "top-1, weights as scored": changed(topk=1, router_renormalise=False),
}

EXPERIMENT = Comparison(MODELS, tiny={"recall": 3}).experiment
