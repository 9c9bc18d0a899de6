"""Sets of tasks, the paper's and needles, and their averages; knows no harness, so results can be read without it."""

from collections.abc import Mapping
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
    "needles": {
        "needle_single": "found",
        "needle_multi_key": "found",
        "needle_multi_value": "found",
        "needle_multi_query": "found",
        "needle_variables": "found",
        "needle_common_words": "found",
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


def suite_means(tasks: Mapping[str, Any]) -> dict[str, float]:
    """The average of each of `SUITES` whose tasks all have a score."""
    means = {}
    for suite, headlines in SUITES.items():
        counted = {task: metric for task, metric in headlines.items() if metric is not None}
        values = [tasks[task]["metrics"].get(metric) if task in tasks else None for task, metric in counted.items()]
        scores = [value for value in values if value is not None]
        if len(scores) == len(values):
            means[suite] = float(np.mean(scores))
    return means
