"""Needles of `mom_jax.data.needles` as tasks of the harness: made here, so no network is needed."""

import functools
from typing import Any

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask

from mom_jax.data.needles import NEEDLES, needle_sample
from mom_jax.data.tokenizers import Tokenizer

NEEDLE_TASKS = {f"needle_{name}": name for name in NEEDLES}
_SAMPLES = 100
_NEW_TOKENS = 64


def needle_task(name: str, tokenizer: Tokenizer, max_length: int) -> ConfigurableTask:
    """The harness's task of that name of `NEEDLE_TASKS`: a hundred questions as long as the model reads.

    Args:
        name: of the task.
        tokenizer: of the model.
        max_length: tokens of prompt and answer together.

    Raises:
        InputError: too few tokens for the question.
    """
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": functools.partial(questions, NEEDLE_TASKS[name], tokenizer, max_length),
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answers[0]}}",
            "process_results": found,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False},
            "metric_list": [{"metric": "found", "aggregation": "mean", "higher_is_better": True}],
            "num_fewshot": 0,
        }
    )


def questions(task: str, tokenizer: Tokenizer, length: int, **metadata: Any) -> dict[str, datasets.Dataset]:
    """Rows of ``prompt`` and ``answers``, always the same for a task, tokenizer and length."""
    samples = [needle_sample(task, np.random.default_rng([length, n]), tokenizer, length) for n in range(_SAMPLES)]
    rows = [{"prompt": sample.prompt, "answers": list(sample.answers)} for sample in samples]
    return {"test": datasets.Dataset.from_list(rows)}


def found(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The share of what is asked for that the answer contains, as RULER scores it."""
    return {"found": float(np.mean([answer in results[0] for answer in doc["answers"]]))}
