"""The parts of a router, and what memories differ in, one changed at a time.

    mom-jax experiment routers --scale tiny        two CPU cores, ten minutes
    mom-jax experiment routers --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment routers --scale paper       32 GPUs, ten hours a model

Tiny and small: synthetic recall, as in `studies/capacity.py`. The paper's router is a softmax whose largest two are
made to sum to 1, balanced by the auxiliary loss. With one memory for each token such weights are 1, so what is read
does not teach the router: `top-1, weights as scored` lets it. Choices that no router makes show what its choice is
worth: by position in the text, one memory after the other, by a hash of the token, and always the same two. Models of
this task have one head, so a router for each head is not among them.
"""

import dataclasses
from typing import Any

from ..common.comparison import RECALL, Comparison, Model, changed
from ..common.recall import TINY


def chosen(by: str, **fields: Any) -> Model:
    """The mixture whose memories no router chooses."""
    return changed(router_choice=by, router_balance="none", **fields)


MODELS = {
    "the paper's": Model(),
    "weights as scored": changed(router_renormalise=False),
    "sigmoid": changed(router_scores="sigmoid"),
    "sigmoid, weights as scored": changed(router_scores="sigmoid", router_renormalise=False),
    "loss on logits": changed(router_z_loss_scale=1e-3),
    "loss-free balance": changed(router_balance="loss_free"),
    "sigmoid, loss-free balance": changed(router_scores="sigmoid", router_balance="loss_free"),
    "expert choice": changed(router_balance="expert_choice"),
    "no balance": changed(router_balance="none"),
    "noise": changed(router_noise=1.0, router_noise_steps=400),
    "top-1": changed(topk=1),
    "top-1, weights as scored": changed(topk=1, router_renormalise=False),
    "reads apart": changed(router_reads="apart"),
    "one projection": changed(single_kv_proj=True),
    "projections of rank 2": changed(projection_rank=2),
    "decays spread by 16": changed(decay_spread=16.0),
    "by position": chosen("position", router_block=8),
    "round robin": chosen("round_robin"),
    "by hash": chosen("hash"),
    "always the same": chosen("one"),
}

# long enough for models to learn, so that the tiny scale has differences to show
TASKS = RECALL | {"tiny": dataclasses.replace(TINY, steps=400, seeds=(0, 1, 2))}

EXPERIMENT = Comparison(MODELS, tiny=("recall",), recall_tasks=TASKS).experiment
