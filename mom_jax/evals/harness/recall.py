"""The recall set of the paper's table 2: a document, then the beginning of a sentence that it completes.

Prompts, windows and score are those of the harness of "Just read twice" (Arora et al., arXiv 2407.05483, section 4),
with which MoM and the models beside it were measured: no instruction and no examples; the document is cut to
2,048 tokens less 50 for the answer, around the place where the answer (or the key that is asked for) first
stands; up to 48 tokens are generated until the line ends; the score is whether they contain the answer, in
whatever case. The tasks that lm-evaluation-harness calls ``nq_open``, ``triviaqa`` and ``drop`` are others: the
first two show no document.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from mom_jax.data.tokenizers import Tokenizer

CUT = 2048  # tokens of document and answer together
_ANSWER = 50  # of these, kept free for the answer
_NEW_TOKENS = 48
_SUMMARY = "Summary of information above..."  # begins the question block of a page of SWDE

Doc = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecallSet:
    """One data set.

    Attributes:
        dataset: its name on the Hugging Face hub.
        context: the field of the document.
        cut_at: fields of which the earliest one to occur is the middle of the window; none: its beginning.
        prompt: prompt from the document with its context cut.
    """

    dataset: str
    context: str
    cut_at: tuple[str, ...]
    prompt: Callable[[Doc], str]


def _with_key(doc: Doc) -> str:
    key = doc["key"] + ":"
    text = _without_end(doc["text"].split(_SUMMARY)[0], key).strip("\n").strip().strip(".")
    return f"{text}. {key[0].upper()}{key[1:]}"


def _as_it_is(doc: Doc) -> str:
    return doc["text"].strip()


def _with_question(doc: Doc) -> str:
    question = doc["question"].strip()
    text = re.sub(r"\[(PAR|DOC|TLE)\]", "", doc["context"].strip())
    return f"{_without_end(text, question).strip().strip('.')}. {question}"


def _without_end(text: str, end: str) -> str:
    while end and text.lower().endswith(end.lower()):
        text = text[: -len(end)]
    return text


RECALL_SETS = {
    "recall_fda": RecallSet("hazyresearch/based-fda", "text", ("key", "value"), _with_key),
    "recall_swde": RecallSet("hazyresearch/based-swde-v2", "text", ("key", "value"), _with_key),
    "recall_squad": RecallSet("hazyresearch/based-squad", "text", ("value",), _as_it_is),
    "recall_nq": RecallSet("hazyresearch/based_nq_2048", "context", ("answers",), _with_question),
    "recall_triviaqa": RecallSet("hazyresearch/based_triviaqa", "context", (), _with_question),
    "recall_drop": RecallSet("hazyresearch/based_drop", "context", (), _with_question),
}


def recall_task(name: str, tokenizer: Tokenizer, max_length: int) -> ConfigurableTask:
    """The harness's task for one of `RECALL_SETS`; loads its data.

    Args:
        name: of the set.
        tokenizer: counts the tokens of the window.
        max_length: the most tokens the model reads; the window is smaller where this is less than 2,048.

    Raises:
        OSError: the data is neither on this machine nor within reach.
    """
    chosen = RECALL_SETS[name]
    window = min(CUT, max_length) - _ANSWER
    return ConfigurableTask(
        config={
            "task": name,
            "dataset_path": chosen.dataset,
            "output_type": "generate_until",
            "validation_split": "validation",
            "process_docs": functools.partial(prompts, chosen, tokenizer=tokenizer, window=max(window, 1)),
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{labels[0]}}",
            "process_results": contains,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False},
            "metric_list": [{"metric": "contains", "aggregation": "mean", "higher_is_better": True}],
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
        }
    )


def prompts(chosen: RecallSet, docs: Iterable[Doc], tokenizer: Tokenizer, window: int) -> datasets.Dataset:
    """Documents as rows of ``prompt`` and ``labels``; those that are cut at an answer of one letter are left out."""
    rows = []
    for doc in docs:
        if any(len(_first(doc[field])) <= 1 for field in chosen.cut_at):
            continue
        labels = doc["answers"] if "answers" in doc else [doc["value"]]
        text = cut_document(chosen, doc, tokenizer, window)
        rows.append({"prompt": chosen.prompt({**doc, chosen.context: text}), "labels": list(labels)})
    return datasets.Dataset.from_list(rows)


def cut_document(chosen: RecallSet, doc: Doc, tokenizer: Tokenizer, window: int) -> str:
    """The ``window`` tokens of a document around what is asked for; its end where that does not occur."""
    text = doc[chosen.context].split(_SUMMARY)[0].strip()
    ids = tokenizer.encode(text)
    places = [place for field in chosen.cut_at if (place := _find(text, _first(doc[field]))) >= 0]
    if not places:
        places = [place for answer in doc.get("alt_answers") or () if (place := _find(text, answer)) >= 0][:1]
    if not chosen.cut_at:
        middle = 0
    elif places:
        middle = len(tokenizer.encode(text[: min(places)]))
    else:
        middle = int(doc.get("tok_pos") or len(ids))
    start = max(0, middle - window // 2)
    return tokenizer.decode(ids[start : start + window])


def contains(doc: Doc, results: list[str]) -> dict[str, float]:
    """Whether the answer contains one of the labels, in whatever case."""
    answer = results[0].lower()
    return {"contains": float(any(label.lower() in answer for label in doc["labels"]))}


def _first(value: str | list[str]) -> str:
    return value if isinstance(value, str) else value[0]


def _find(text: str, part: str) -> int:
    match = re.search(re.escape(part), text, re.IGNORECASE)
    return match.start() if match else -1
