"""Results of experiments and of runs that nobody has measured."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mom_jax.training.config import get_train_preset

# As `mom-jax eval` keeps one, but for the text and the length of its windows.
EVALUATION = {
    "step": 20,
    "tokens": 12345,
    "loss": 1.2512,
    "perplexity": 3.494,
    "bits_per_byte": 1.8051,
    "by_position": [
        {"start": 0, "stop": 16, "tokens": 345, "loss": 2.5171},
        {"start": 16, "stop": 256, "tokens": 12000, "loss": 1.2239},
    ],
    "load": [[0.511, 0.252, 0.126, 0.111], [0.251, 0.249, 0.253, 0.247]],
    "routing_entropy": [1.013, 1.257],
}


def train_record(step: int, loss: float, **more: Any) -> dict[str, Any]:
    """A line of ``metrics.jsonl``; ``loss`` is that of the language model alone."""
    return {
        "step": step,
        "loss": loss + 0.02,
        "lm_loss": loss,
        "aux_loss": 2.0,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
        "tokens": 2048,
        "load": [[0.4, 0.3, 0.2, 0.1], [0.25] * 4],
        "routing_entropy": [1.2, 1.3],
        "bad_total": 3,
        "seconds_per_step": 0.5,
        "tokens_per_second": 4096.0,
        **more,
    }


def write_run(folder: Path, records: Iterable[dict[str, Any]], **changes: Any) -> Path:
    """A run of mom-tiny, with fields that are changed, that has logged these records."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(get_train_preset("mom-tiny"), run_dir=str(folder), **changes)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def tuned_result(accuracies: list[float], chance: float = 0.05, tests: tuple[str, ...] = (), **facts: Any) -> dict:
    """As `experiments.common.seeds.learned` gives it: the best rate's run for each seed."""
    costs = {"state": 1234, "activated": 5678, "parameters": 9012, "load": [[0.3, 0.2, 0.25, 0.25]]}
    costs |= {"curve": [[25, 0.1], [50, 0.2]], "losses": [[step, 2.0 - step / 100] for step in range(10, 110, 10)]}
    runs = [{"accuracy": a, "validation": a, "tests": dict.fromkeys(tests, a), **costs, **facts} for a in accuracies]
    return {"learning_rate": 2e-3, "inside": True, "grid": [[2e-3, 1.0]], "runs": runs, "chance": chance}
