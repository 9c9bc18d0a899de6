"""What the reports of a run say about it in words."""

from collections.abc import Sequence
from typing import Any

from mom_jax.evals.results import Evaluation
from mom_jax.models.config import MoMConfig
from mom_jax.training.config import TrainConfig


def describe_model(model: MoMConfig) -> str:
    """A model's size, memory and attention layers in words."""
    layers = model.num_hidden_layers
    words = [f"{layers} layer{'s' * (layers > 1)}", f"hidden size {model.hidden_size}"]
    if "memory" in model.layer_kinds:
        words.append(f"{model.num_heads} heads of {model.head_dim}")
        if model.mixture:
            words.append(f"{model.num_memories} memories, top {model.topk}{', shared memory' * model.shared_mem}")
        words.append(model.memory_rule)
    for kind, attn in model.attention.items():
        words.append(f"{model.layer_kinds.count(kind)} attention layers of {attn.num_heads} heads")
    return ", ".join(words)


def last_held_out(config: TrainConfig, record: dict[str, Any]) -> str:
    """A held-out loss in training: which, when and of how much text."""
    windows = f"{config.eval_windows:,} windows of {config.data.sequence_length:,} tokens"
    return f"{record['held_out_loss']:.4f} nats per token (step {record['step']:,}, at most {windows})"


def sample_of(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """A continuation that the model wrote, with its title; none where none was asked for."""
    samples = [evaluation["sample"] for evaluation in evaluations if "sample" in evaluation]
    title = "A continuation, sampled at temperature"
    return [(f"{title} {sample['temperature']:g}", sample["prompt"] + sample["text"]) for sample in samples[:1]]


TWO_LOSSES = (
    "There are two held-out losses. The one in training covers a few windows, spread evenly over the held-out text, so "
    "that it costs little and can be watched. mom-jax eval scores the newest checkpoint on all of that text, or on as "
    "many windows as --max-windows asked for. The two differ somewhat even at the same step; compare models by the "
    "latter."
)
