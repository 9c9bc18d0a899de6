"""Trains language models on text, each once for all experiments, and scores them; no experiment by itself.

Tiny: bytes of the Python standard library's source, two layers of width 64 with one head of 32 channels, windows of
512 bytes, 2,048 bytes a step, 200 steps. The paper's: `mom-340m` on 15B tokens of SlimPajama, `mom-1.3b` on
100B, windows of 2,048 tokens of the Mistral tokenizer. Medium: 8 layers of width 512 with four heads of 128 channels
(57M parameters as a mixture) on 1B tokens of the same text, 131,072 a step. Small: models as of tiny, 10.5 MB of the
same text in windows of 2,048 bytes, 16,384 bytes a step.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import with_rule
from mom_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, get_train_preset

TINY = "tiny"
SMALL, MEDIUM = "small", "medium"
SIZES = {"tiny": (TINY,), "small": (SMALL,), "medium": (MEDIUM,), "paper": ("mom-340m", "mom-1.3b")}  # of a scale

_SMALL = {"hidden_size": 64, "num_heads": 1, "head_dim": 32, "num_slots": 32, "gate_low_rank_dim": 8,
          "decay_low_rank_dim": 16, "proj_low_rank_dim": 8, "a_low_rank_dim": 16}  # fmt: skip
_MIDDLE = {"hidden_size": 512, "num_hidden_layers": 8, "head_dim": 128}
_MODEL = {TINY: _SMALL, SMALL: _SMALL, MEDIUM: _MIDDLE}
_PRESET = {TINY: "mom-tiny", SMALL: "mom-tiny", MEDIUM: "mom-340m"}  # others are presets
_PAPER_TEXT = {"path": "hf:cerebras/SlimPajama-627B:default:train",
               "held_out_path": "hf:cerebras/SlimPajama-627B:default:validation"}  # fmt: skip
_SCORED = 2**16  # bytes that tiny models are scored on


def recipe(size: str, rule: str, change: Callable[[MoMConfig], MoMConfig], seed: int) -> TrainConfig:
    """A training run.

    Args:
        size: of `SIZES`.
        rule: of the mixture that the model is, or is made from.
        change: makes the model from that mixture.
        seed: of parameters and of the order of the text.
    """
    config = get_train_preset(_PRESET.get(size, size))
    mixture = with_rule(config.model, rule)
    model = change(dataclasses.replace(mixture, **_MODEL.get(size, {})))
    data = dataclasses.replace(config.data, seed=seed, **({} if size in (TINY, SMALL) else _PAPER_TEXT))
    config = dataclasses.replace(config, model=model, data=data, seed=seed)
    if size == SMALL:
        data = dataclasses.replace(data, sequence_length=2048, batch_size=8)
        parts = {"data": data, "checkpoint": CheckpointConfig(every=200, keep=1)}
        rate = OptimizerConfig(learning_rate=3e-3, warmup_steps=50)
        return dataclasses.replace(config, **parts, optimizer=rate, steps=640, log_every=20, eval_every=320)
    if size == MEDIUM:
        rate = dataclasses.replace(config.optimizer, learning_rate=1e-3, warmup_steps=300)
        data = dataclasses.replace(config.data, batch_size=64)
        return dataclasses.replace(config, data=data, optimizer=rate, steps=7_630)
    if size != TINY:
        return config
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, sequence_length=512, batch_size=4),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20),
        checkpoint=CheckpointConfig(every=200, keep=1),
        steps=200,
        log_every=50,
        eval_every=50,
        eval_windows=32,
    )


def trained(config: TrainConfig, models: Path) -> str:
    """The folder of a run of that recipe, trained now unless it is there; a run that was stopped goes on.

    Raises:
        InputError: the text is not to be had.
        KeyboardInterrupt: training was told to stop; its checkpoint is there.
    """
    from mom_jax.cli.runs import console  # imports JAX
    from mom_jax.runs import train_and_report
    from mom_jax.training.checkpoint import checkpoint_folder, latest_step

    config, out = dataclasses.replace(config, run_dir=str(run_folder(config, models))), console()
    done = (latest_step(checkpoint_folder(config.run_dir)) or 0) >= config.steps
    if not done and not train_and_report(config, out).finished:
        raise KeyboardInterrupt
    return config.run_dir


def held_out_scores(run_dir: str, size: str, length: int) -> dict[str, Any]:
    """Held-out scores in windows of ``length`` (`mom_jax.evals.perplexity.evaluate`), and what the model costs.

    Of tiny models 64 KB, the same for all models; of others all held-out text.
    """
    from mom_jax.runs import evaluate_run  # imports JAX

    limits: dict[str, Any] = {}
    if size == TINY:
        limits = {"batch_size": max(1, 4096 // length), "max_windows": _SCORED // length}
    evaluation = evaluate_run(run_dir, sequence_length=length, **limits).evaluation
    scores = {name: value for name, value in evaluation.items() if name not in ("date", "text")}
    return scores | costs(TrainConfig.from_file(Path(run_dir) / "config.json").model, length)


def ngram_scores(run_dir: str) -> dict[str, float]:
    """Held-out bits per byte of n-gram models of the text that a run was trained on, by name."""
    from mom_jax.data.prepare import prepared
    from mom_jax.evals.ngram import ngram_bits_per_byte

    return ngram_bits_per_byte(prepared(TrainConfig.from_file(Path(run_dir) / "config.json").data))


def task_scores(run_dir: str, suite: str) -> dict[str, Any]:
    """Every metric of a suite's tasks, by ``task metric``; their mean is ``SUITE average``."""
    from mom_jax.evals.harness.suites import suite_means
    from mom_jax.runs import evaluate_run_on_tasks  # imports JAX and the harness

    results = evaluate_run_on_tasks(run_dir, [suite])
    values = {
        f"{name} {metric}": value
        for kind in ("tasks", "groups")
        for name, result in results[kind].items()
        for metric, value in result["metrics"].items()
    }
    average = suite_means(results["tasks"]).get(suite, values.get(f"{suite} score"))
    model = TrainConfig.from_file(Path(run_dir) / "config.json").model
    return {f"{suite} average": average, **values, **costs(model, 2048)}


def costs(model: MoMConfig, length: int) -> dict[str, int]:
    """``parameters``, those a token uses (``activated``), and bytes of ``state`` of one sequence of a length."""
    from mom_jax.models.accounting import account, total  # imports JAX

    cost = total(account(model, length))
    return {"parameters": cost.parameters, "activated": cost.activated, "state": cost.state_bytes}


def run_folder(config: TrainConfig, models: Path) -> Path:
    """Where a recipe's run is kept; its name changes with all that the trained model depends on."""
    fields = config.to_dict()
    del fields["run_dir"], fields["data"]["cache_dir"]
    return models / f"text-{hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]}"
