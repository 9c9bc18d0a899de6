"""The compiled training step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax.labels import IGNORE
from mom_jax.layers.router import RouterTraining
from mom_jax.ops.router_statistics import router_statistics
from mom_jax.ops.routing import auxiliary_loss, router_z_loss
from mom_jax.trace_cache import kept
from mom_jax.training.balance import balance_routers
from mom_jax.training.exploration import router_training
from mom_jax.training.program import Program
from mom_jax.training.sharding import BATCH_SPEC
from mom_jax.training.spikes import judge
from mom_jax.training.state import TrainState
from mom_jax.typing import Batch

Metrics = dict[str, jax.Array]


def _microbatches(batch: Batch, count: int, mesh: Mesh) -> Batch:
    # Row r goes to micro-batch r % count: each device splits its own rows and none moves.
    def split(rows: jax.Array) -> jax.Array:
        parts = rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, *BATCH_SPEC)))

    return {name: split(rows) for name, rows in batch.items()}


def _loss(
    params: Any, micro: Batch, total_tokens: jax.Array, program: Program, training: RouterTraining | None
) -> tuple[jax.Array, Metrics]:
    config, model = program.config, program.parts.merge(params)
    if program.own.loss is not None:
        loss, metrics = program.own.loss(model, micro)
        share = {"loss": loss, "lm_loss": loss, **metrics}
        return loss / config.gradient_accumulation, jax.tree.map(lambda x: x / config.gradient_accumulation, share)
    if program.mesh.size == 1:  # several devices round what they gather, and sum its gradients before
        model = model.rounded()
    hidden, router, _ = model.hidden_states(
        micro["input_ids"], segment_ids=micro["segment_ids"], remat=config.remat, training=training
    )
    penalised, nats = model.cross_entropy(hidden, micro["labels"], config.z_loss_scale)
    scores = config.model.router_scores
    metrics = {"aux_loss": auxiliary_loss(router, scores=scores)}
    weights = {"aux_loss": config.model.auxiliary_weight}
    if config.model.router_z_loss_scale:
        metrics["z_loss"] = router_z_loss(router, scores=scores)
        weights["z_loss"] = config.model.router_z_loss_scale
    metrics |= router_statistics(router, scores=scores)
    metrics = jax.tree.map(lambda x: x / config.gradient_accumulation, metrics)
    loss = penalised / total_tokens + sum(weight * metrics[name] for name, weight in weights.items())
    if config.z_loss_scale:
        metrics["lm_z_loss"] = (penalised - nats) / total_tokens / config.z_loss_scale
    return loss, {"loss": loss, "lm_loss": nats / total_tokens, **metrics}


def loss_and_gradients(
    params: Any, batch: Batch, program: Program, key: jax.Array | None = None, step: Any = 0
) -> tuple[Metrics, Any]:
    """Loss, metrics and gradients of one whole batch, micro-batch by micro-batch.

    Each micro-batch's cross entropy is divided by the token count of the WHOLE batch, so accumulation gives
    the gradient of one big batch. The load-balance loss is not linear in the batch: it is that of each
    micro-batch, averaged.

    Args:
        params: nested dictionary of parameters.
        batch: ``input_ids``, ``labels`` (-100: no loss) and ``segment_ids``, int32 ``[B, T]``.
        program: of the run.
        key: of the step's random numbers, if routers need any; that of the run's seed if None.
        step: steps taken so far.

    Returns:
        (metrics, gradients): losses in nats per token, ``tokens`` that bear loss, `router_statistics`.
    """
    tokens = jnp.sum(batch["labels"] != IGNORE)
    total = jnp.maximum(tokens, 1).astype(jnp.float32)

    key = jax.random.key(program.config.seed) if key is None else key

    def accumulate(summed: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, Metrics]:
        micro, number = numbered
        training = router_training(program.config.model, jax.random.fold_in(key, number), step)
        (_, metrics), gradients = jax.value_and_grad(_loss, has_aux=True)(params, micro, total, program, training)
        return jax.tree.map(jnp.add, summed, gradients), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    micros = _microbatches(batch, program.config.gradient_accumulation, program.mesh)
    numbers = jnp.arange(program.config.gradient_accumulation)
    gradients, metrics = jax.lax.scan(accumulate, zeros, (micros, numbers))
    return {**jax.tree.map(lambda x: x.sum(0), metrics), "tokens": tokens}, gradients


def train_step(state: TrainState, batch: Batch, program: Program) -> tuple[TrainState, Metrics]:
    """One update, or none when loss, gradient or update is not finite or spikes, which the device decides by itself.

    A router's bias, where there is one, moves by the step's loads and by nothing else.
    A skipped step leaves parameters, moments and learning-rate schedule as they were and is counted.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    metrics, gradients = loss_and_gradients(state.params, batch, program, key, state.step)
    grad_norm = optax.tree_utils.tree_norm(gradients)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.params)
    norms = jnp.stack([metrics["loss"], grad_norm, optax.tree_utils.tree_norm(updates)])
    good, spikes = jnp.isfinite(norms).all(), state.spikes
    told: Metrics = {}
    if spikes is not None:
        spiked, spikes = judge(spikes, norms[:2], program.config.spikes)
        good, told = good & ~spiked, {"spiked": spiked, "spikes": spikes["total"]}
    params = balance_routers(optax.apply_updates(state.params, updates), metrics.get("load"), program.config.model)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    rate = program.schedule(state.step - state.bad_total)
    ema = None if state.ema is None else _moved(state.ema, params, state.step - state.bad_total, program)
    new = dataclasses.replace(
        state,
        params=keep(params, state.params),
        ema=keep(ema, state.ema),
        spikes=spikes,
        opt_state=keep(opt_state, state.opt_state),
        step=state.step + 1,
        bad_steps=jnp.where(good, 0, state.bad_steps + 1),
        bad_total=state.bad_total + ~good,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)  # or every step would be compiled anew
    return new, {
        **metrics,
        **told,
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(rate if program.own.optimizer is None else jnp.nan, jnp.float32),
        "bad_steps": new.bad_steps,
        "bad_total": new.bad_total,
    }


def _moved(ema: Any, params: Any, updates: jax.Array, program: Program) -> Any:
    """The moving average after one more update; its first ones count little, or the initial parameters would stay."""
    most = program.config.optimizer.ema_decay
    assert most is not None
    decay = jnp.minimum(most, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda average, value: average + (1 - decay) * (value - average), ema, params)


def make_train_step(program: Program) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` compiled for the program's mesh, to be set when it is called; the state is donated."""
    return jax.jit(lambda state, batch: train_step(state, batch, program), donate_argnums=0, **_places(program))


def kept_train_step(program: Program) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """As `make_train_step`, perhaps not traced anew (`kept`); the mesh has to be set."""
    data = program.config.data
    row = jax.ShapeDtypeStruct((data.batch_size, data.sequence_length), jnp.int32)
    arguments = program.abstract, dict.fromkeys(("input_ids", "labels", "segment_ids"), row)
    about = "train step", program.about
    return kept(make_train_step(program), about, arguments, donate=(0,), **_places(program))


def _places(program: Program) -> dict[str, Any]:
    rows, whole = NamedSharding(program.mesh, BATCH_SPEC), NamedSharding(program.mesh, PartitionSpec())
    return {"in_shardings": (program.shardings, rows), "out_shardings": (program.shardings, whole)}
