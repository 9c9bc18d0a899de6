"""Trains a small model on synthetic recall and scores it; no experiment by itself, what several are made of."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mom_jax.data.recall import BLANK, RecallBatch
from mom_jax.labels import IGNORE
from mom_jax.layers.router import RouterTraining
from mom_jax.models.accounting import account, total
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.structure import build_model, decays
from mom_jax.ops.loss import token_cross_entropy
from mom_jax.ops.router_statistics import router_statistics
from mom_jax.ops.routing import RouterOutput, auxiliary_loss, router_z_loss
from mom_jax.terminal import counting
from mom_jax.training.balance import balance_routers
from mom_jax.training.exploration import router_training

from .rows import Maker, Rows

_STEPS = 25  # steps of one compiled call


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW with a short warm-up and a cosine to zero, gradients clipped to norm 1.

    Attributes:
        learning_rate: the peak.
        steps: at most; training ends when `solved` is reached, looked at every ``look_every`` steps.
        batch_size: rows of a step.
        seed: of parameters and data.
        questions: places for labels in a row; what a batch leaves free is filled up, so that tasks of the same
            length share a compiled program.
        test_rows: rows of the test; validation, which decides when to stop, has a quarter.
        weight_decay: as in Zoology's runs.
        solved: validation accuracy that ends the training.
    """

    learning_rate: float
    steps: int
    batch_size: int
    seed: int
    questions: int
    test_rows: int = 512
    weight_decay: float = 0.1
    solved: float = 0.995
    look_every: int = 100


def train_together(config: MoMConfig, rows: Rows, trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Trains fresh models on batches made on the fly and scores them on rows that they have not seen.

    They differ in learning rate and seed, and are trained in one program, which stops when all are solved. Models of
    one seed start alike and see the same rows.

    Args:
        config: of the models; their routers are balanced as it says.
        rows: what they read.
        trainings: how to train each, and how many rows to test it on.

    Returns:
        JSON-ready, of each model: ``accuracy`` on the test (share of queries whose likeliest token is the value),
        ``validation`` and ``validation_loss`` (nats), ``loss`` in nats, ``steps`` until solved or all, ``curve``
        [[step, validation accuracy]] and ``losses`` [[step, validation loss]], ``parameters``, ``activated``,
        ``state`` (bytes of one sequence), ``tests`` (the accuracy on each of them), and where there is a router
        ``load`` [L][M] and, where tokens tell their kind, ``kinds`` [L][kinds][M]: the share of all writes that are
        of a kind and go to a memory.
    """
    training = trainings[0]
    # Seeds of test and validation are the same for all, those of training differ: no row is met twice but by chance.
    test = rows.make(_generator(1), training.test_rows)
    validation = rows.make(_generator(2), training.test_rows // 4)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build_model(config, 0)))
    params, looks = _trained(graph, config, rows, trainings, validation)
    others = {name: make(_generator(1), training.test_rows) for name, make in rows.tests.items()}
    of_others = {name: _scores(graph, params, batch, training.questions) for name, batch in others.items()}
    own = _scores(graph, params, test, training.questions, rows.kinds)
    costs = total(account(config, test.tokens.shape[1]))
    facts = {"parameters": costs.parameters, "activated": costs.activated, "state": costs.state_bytes}
    return [
        {
            **score,
            **facts,
            "steps": looks[-1][0],
            "validation": looks[-1][1][i]["accuracy"],
            "validation_loss": looks[-1][1][i]["loss"],
            "curve": [[at, scores[i]["accuracy"]] for at, scores in looks],
            "losses": [[at, scores[i]["loss"]] for at, scores in looks],
            "tests": {name: scores[i]["accuracy"] for name, scores in of_others.items()},
        }
        for i, score in enumerate(own)
    ]


def _trained(
    graph: Any, config: MoMConfig, rows: Rows, trainings: Sequence[Training], validation: RecallBatch
) -> tuple[Any, list[tuple[int, list[dict[str, Any]]]]]:
    """The parameters [N, ...] of models that are trained side by side; (step, scores [N] on validation rows)."""
    training = trainings[0]
    streams = {each.seed: _generator(3, each.seed) for each in trainings}
    keys = jnp.stack([jax.random.key(each.seed) for each in trainings])
    params = _stacked([_init(config, key) for key in keys])
    moments = jax.vmap(_optimizer(training.weight_decay).init)(params)
    looks, note = [], ""
    with counting(f"steps of training {len(trainings)} models", training.steps) as advance:
        for step in range(0, training.steps, _STEPS):
            steps = np.arange(step, min(step + _STEPS, training.steps))
            read = [_rows_of_each(rows.lessons or rows.make, streams, training) for _ in steps]
            batches = {name: np.stack([[r[t.seed][name] for t in trainings] for r in read]) for name in _FIELDS}
            rates = np.asarray([[_rate(each, number) for each in trainings] for number in steps.tolist()], np.float32)
            params, moments = _train(graph, config, training.weight_decay, params, moments, keys, batches, rates, steps)
            done = step + len(steps)
            if done % training.look_every < _STEPS or done == training.steps:
                looks.append((done, _scores(graph, params, validation, training.questions)))
                note = "validation accuracy " + " ".join(f"{score['accuracy']:.2f}" for score in looks[-1][1])
            advance(note, len(steps))
            if looks and all(score["accuracy"] >= training.solved for score in looks[-1][1]):
                break
    return params, looks


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _rows_of_each(make: Maker, streams: Mapping[int, np.random.Generator], training: Training) -> dict[int, Any]:
    """A step's rows for each seed."""
    return {seed: _questions(make(stream, training.batch_size), training.questions) for seed, stream in streams.items()}


def recall_hidden_states(
    model: MoMForCausalLM, tokens: jax.Array, training: RouterTraining | None = None
) -> tuple[jax.Array, RouterOutput | None]:
    """Hidden states [B, T, D] and router logits; the embeddings of fused tokens [B, T, 2] are summed."""
    x = model.embeddings[...].astype(model.config.compute_dtype)[tokens]
    single = tokens.ndim == 2
    ids, embedded = (tokens, x) if single else (tokens[..., 0], x.sum(-2))
    return model.hidden_states(ids, inputs_embeds=embedded, training=training)[:2]


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _rate(training: Training, step: int) -> float:
    warmup = max(1, training.steps // 20)
    cosine = 0.5 * (1 + np.cos(np.pi * max(0, step - warmup) / max(1, training.steps - warmup)))
    return training.learning_rate * min(1.0, (step + 1) / warmup) * cosine


_FIELDS = ("tokens", "places", "answers")


def _questions(batch: RecallBatch, width: int) -> dict[str, np.ndarray]:
    """`_FIELDS` of a batch; the places [B, width] of its labels, since only these positions need logits."""
    unasked = batch.labels == IGNORE  # such positions fill up rows of fewer labels
    if (most := int((~unasked).sum(1).max())) > width:
        raise ValueError(f"a row has {most} labels, and there are places for {width}")
    places = np.argsort(unasked, 1, kind="stable")[:, :width].astype(np.int32)
    return {"tokens": batch.tokens, "places": places, "answers": np.take_along_axis(batch.labels, places, 1)}


@functools.partial(jax.jit, static_argnums=0)
def _init(config: MoMConfig, key: jax.Array) -> nnx.State:
    return nnx.state(build_model(config, key))


def _optimizer(weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=decays),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _train(graph, config, weight_decay, params, moments, keys, batches, rates, steps):
    """Steps [S] of models [N] that are trained side by side."""
    optimizer = _optimizer(weight_decay)

    def one(params, moments, key, batch, rate, number):
        routers = router_training(config, jax.random.fold_in(key, number), number)
        gradients, load = jax.grad(lambda p: _loss(nnx.merge(graph, p), batch, routers), has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return balance_routers(params, load, config), moments

    def step(carry, xs):
        batch, rate, number = xs
        params, moments = carry
        return jax.vmap(one, (0, 0, 0, 0, 0, None))(params, moments, keys, batch, rate, number), None

    return jax.lax.scan(step, (params, moments), (batches, rates, steps))[0]


def _loss(
    model: MoMForCausalLM, batch: dict[str, jax.Array], training: RouterTraining | None
) -> tuple[jax.Array, jax.Array | None]:
    """The loss, and the loads of memories where there is a router."""
    logits, router = _answers(model, batch, training)
    config, loss = model.config, _nats(logits, batch["answers"])
    loss += config.auxiliary_weight * auxiliary_loss(router, scores=config.router_scores)
    loss += config.router_z_loss_scale * router_z_loss(router, scores=config.router_scores)
    return loss, router_statistics(router).get("load")


def _nats(logits, answers):
    return token_cross_entropy(logits, answers).sum() / (answers != IGNORE).sum()


def _answers(model, batch, training=None):
    hidden, router = recall_hidden_states(model, batch["tokens"], training)
    queried = jnp.take_along_axis(hidden, batch["places"][..., None], 1)
    weight = model.output_embedding().astype(queried.dtype)
    return jnp.einsum("bnd,vd->bnv", queried, weight, preferred_element_type=jnp.float32), router


_SCORED = 128, 2**16  # rows and tokens scored at a time, at most


def _scores(graph, params, batch: RecallBatch, width: int, kinds: int = 0) -> list[dict[str, Any]]:
    """Each of the models that are stacked in ``params``."""
    questions, count = _questions(batch, width), len(jax.tree.leaves(params)[0])
    few = max(1, min(_SCORED[0], _SCORED[1] // batch.tokens.shape[1]))
    parts = [
        [
            _score_part(graph, kinds, model, {name: rows[i : i + few] for name, rows in questions.items()})
            for i in range(0, len(batch.labels), few)
        ]
        for model in (jax.tree.map(lambda leaf, n=n: leaf[n], params) for n in range(count))
    ]
    means = [jax.tree.map(lambda *values: np.mean(values, axis=0).tolist(), *of_model) for of_model in parts]
    return [{name: value for name, value in mean.items() if name != "routing_entropy"} for mean in means]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_part(graph, kinds, params, batch):
    model = nnx.merge(graph, params)
    logits, router = _answers(model, batch)
    answers = batch["answers"]
    right = (jnp.argmax(logits, -1) == answers).sum() / (answers != IGNORE).sum()
    statistics = router_statistics(router, scores=model.config.router_scores)
    if kinds and router is not None:
        statistics["kinds"] = _writes(router, batch["tokens"], model.config.vocab_size - kinds, kinds)
    return {"accuracy": right, "loss": _nats(logits, answers), **statistics}


def _writes(router: RouterOutput, tokens: jax.Array, first: int, kinds: int) -> jax.Array:
    """Shares [L, kinds, M] of the writes of pairs, by the kind that a token's last id says and by memory."""
    written = (tokens[..., 1] != BLANK)[..., None]
    of_kind = jax.nn.one_hot(tokens[..., -1] - first, kinds) * written
    to_memory = jax.nn.one_hot(router.memory_ids, router.logits.shape[-1]).sum(-2)
    joint = jnp.einsum("btc,lbtm->lcm", of_kind, to_memory)
    return joint / joint.sum((1, 2), keepdims=True)
