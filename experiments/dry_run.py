"""What a scale takes, before anything is run: data, steps, FLOPs, device hours, checkpoints and evaluations."""

import dataclasses
from collections.abc import Sequence

from mom_jax.training.config import TrainConfig

from .registry import Experiment, Point

SUSTAINED = 0.4 * 989e12  # FLOPs a second: of an H100's peak in bfloat16 what a good program reaches
_BYTES_PER_TOKEN = 4  # of English text; tokens on disk take two
_OPTIMIZER = 3  # times the parameters: themselves and two moments
HEADING = ["model", "runs", "parameters", "tokens each", "steps each", "text", "training FLOPs each", "H100 hours each",
           "H100 hours", "checkpoint", "evaluation"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """A language model that several points train, with other seeds or for other evaluations.

    Attributes:
        name: of the model and its size.
        config: of one of the runs.
        runs: how many.
        evaluation: what they are asked.
    """

    name: str
    config: TrainConfig
    runs: int
    evaluation: str


def planned(experiment: Experiment, points: Sequence[Point]) -> list[Cost]:
    """The language models that these points train."""
    groups: dict[tuple[str, str, str], list[TrainConfig]] = {}
    for point in points:
        config = experiment.training(point)
        if config is not None:
            evaluation = point.get("measure") or f"windows of {max(point.get('lengths', [0])):,}"
            model = str(point.get("model") or point.get("architecture", "MoM"))
            runs = len(point.get("rates", ())) + len(point.get("seeds", (0,)))  # a point of several has all of a model
            groups.setdefault((str(point["size"]), model, evaluation), []).extend([config] * runs)
    return [
        Cost(f"{model}, {size}", configs[0], len(configs), evaluation)
        for (size, model, evaluation), configs in groups.items()
    ]


def rows(costs: Sequence[Cost]) -> list[list[str]]:
    """A row of `HEADING` for each model, then the sum."""
    from mom_jax.models.accounting import account, total  # imports JAX

    made, hours_in_all = [], 0.0
    for cost in costs:
        config = cost.config
        parts = total(account(config.model, config.data.sequence_length))
        tokens = config.steps * config.data.tokens_per_step
        flops = (parts.forward + parts.backward) * tokens
        hours = flops / SUSTAINED / 3600
        hours_in_all += hours * cost.runs
        text = f"{tokens * _BYTES_PER_TOKEN / 1e9:,.3g} GB" if config.data.tokenizer != "bytes" else f"{tokens:,} B"
        checkpoint = f"{4 * _OPTIMIZER * parts.parameters / 1e9:.3g} GB"
        counts = [str(cost.runs), f"{parts.parameters:,}", f"{tokens:,}", f"{config.steps:,}"]
        times = [f"{flops:.2g}", f"{hours:,.3g}", f"{hours * cost.runs:,.3g}"]
        made.append([cost.name, *counts, text, *times, checkpoint, cost.evaluation])
    return [*made, ["all", str(sum(c.runs for c in costs)), *[""] * 6, f"{hours_in_all:,.3g}", "", ""]]
