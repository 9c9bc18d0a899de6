"""Results of experiments that nobody has measured."""

from typing import Any


def tuned_result(accuracies: list[float], chance: float = 0.05, tests: tuple[str, ...] = (), **facts: Any) -> dict:
    """As `experiments.common.seeds.learned` gives it: the best rate's run for each seed."""
    costs = {"state": 1234, "activated": 5678, "parameters": 9012, "load": [[0.3, 0.2, 0.25, 0.25]]}
    costs |= {"curve": [[25, 0.1], [50, 0.2]], "losses": [[step, 2.0 - step / 100] for step in range(10, 110, 10)]}
    runs = [{"accuracy": a, "validation": a, "tests": dict.fromkeys(tests, a), **costs, **facts} for a in accuracies]
    return {"learning_rate": 2e-3, "inside": True, "grid": [[2e-3, 1.0]], "runs": runs, "chance": chance}
