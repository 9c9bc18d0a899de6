"""The paper's sets of tasks and their averages; knows no harness, so that results can be read without it."""

from typing import Any

import numpy as np

# The sets: their tasks, and the metric that counts for the average (None: not in it).
SUITES: dict[str, dict[str, str | None]] = {
    "recall": {
        "recall_fda": "contains",
        "recall_swde": "contains",
        "recall_squad": "contains",
        "recall_nq": "contains",
        "recall_triviaqa": "contains",
        "recall_drop": "contains",
    },
    "commonsense": {
        "wikitext": None,
        "lambada_openai": "acc",
        "piqa": "acc",
        "hellaswag": "acc_norm",
        "winogrande": "acc",
        "arc_easy": "acc",
        "arc_challenge": "acc_norm",
    },
}


def suite_means(tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The paper's average of each of `SUITES` whose tasks are all there."""
    means = {}
    for suite, headlines in SUITES.items():
        counted = {task: metric for task, metric in headlines.items() if metric is not None}
        if counted.keys() <= tasks.keys():
            means[suite] = float(np.mean([tasks[task]["metrics"][metric] for task, metric in counted.items()]))
    return means
