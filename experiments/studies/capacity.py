"""How much is recalled for how much state: one memory made larger in three ways, mixtures, and attention.

    mom-jax experiment capacity --scale tiny        two CPU cores, two minutes
    mom-jax experiment capacity --scale small       two CPU cores, an hour; one GPU, minutes

Not in the paper, whose only larger memory has wider values. What a memory of the delta rule can tell apart is bounded
by the width of its keys, and a mixture of five memories has five times the keys of one. So each mixture is set beside
one memory of as much state in three forms: wider values, wider keys, more heads; and beside one with an MLP that brings
its parameters up to those that a token activates in the mixture. A mixture M/k/1 has M memories, of which k are chosen,
and one that all tokens share.

The task is recall in fused tokens (`mom_jax.data.recall.fused_mqar`): the pairs, then each key once more. One layer
without short convolutions, keys of 8 and values of 16 channels. Learning rates are chosen as `common/tuned.py` says;
all models of a task see the same number of tokens: 1,500 steps for 16 pairs, and for 32, of which attention had learnt
nothing by then, 4,500, with the delta rule alone and fewer models. State is that of the memories' matrices in float32,
or of the keys and values of attention. A run whose accuracy is within half of that of guessing among the row's values
(1 / pairs) has stayed at chance: it is counted, and is not part of a mean.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mom_jax.models.baselines import single, transformer
from mom_jax.models.config import MoMConfig

from ..common import recall
from ..common.architectures import mixture, one_memory, with_parameters_of
from ..common.capacity_plot import MIXTURES, NAMES, PARTS, RULE_NAMES, TIMES, capacity_plot
from ..common.seeds import CELLS, cells, late_fall, points_of, rate_cell, trained
from ..registry import Contrast, Experiment, Point, Record

MODELS: dict[str, Callable[[MoMConfig], MoMConfig]] = {
    "one": single,
    **{f"mom {m}/{k}/1": partial(dataclasses.replace, num_memories=m, topk=k) for m, k in MIXTURES},
    **{f"{part} x{times}": partial(one_memory, **{part: times}) for times in TIMES for part in PARTS},
    "parameters": with_parameters_of,
    "attention": transformer,
}
# In the order in which they are worth having.
_ORDER = ("one", "mom 4/2/1", "keys x5", "values x5", "heads x5", "keys x3", "values x3", "heads x3", "attention",
          "parameters", "mom 8/2/1", "mom 8/4/1", "keys x9", "values x9", "heads x9")  # fmt: skip
_LONG = ("one", "mom 4/2/1", "keys x5", "values x5", "heads x5", "keys x3", "attention", "mom 8/2/1", "keys x9")
RULES = ("gated_deltanet", "gla")

TINY = dataclasses.replace(recall.TINY, vocab=16, length=8, pairs=4, questions=4, hidden_size=16)


def points(scale: str) -> list[Point]:
    """Few pairs first, and the delta rule; attention, which has no memory rule, once for each number of pairs."""
    if scale == "tiny":
        return [{**point, "rule": RULES[0]} for point in points_of(TINY, _ORDER[:5])]
    few = [
        {**point, "rule": rule}
        for rule in RULES
        for point in points_of(recall.small(16), _ORDER)
        if point["architecture"] != "attention" or rule == RULES[0]
    ]
    return few + [{**point, "rule": RULES[0]} for point in points_of(recall.small(32, steps=4500), _LONG)]


def run(point: Point, models: Path) -> dict[str, Any]:
    """The best learning rate, every seed with it, and what the model costs."""
    config = MODELS[point["architecture"]](mixture(point))
    return {**recall.recalled(config, point, models), **costs(config, point["length"])}


def costs(config: MoMConfig, length: int) -> dict[str, float]:
    """Bytes of ``state`` and of what a token has ``touched``, training ``flops`` of a token, parameters.

    FLOPs are those of the layers: embedding and output are the same in all models, and larger than all else here.
    """
    from mom_jax.models.accounting import account, total

    parts = account(config, length)
    whole, layers = total(parts), total(parts[1:-1])
    facts = {"flops": layers.forward + layers.backward, "parameters": whole.parameters, "activated": whole.activated}
    if config.attn.layers:
        state = 8 * config.hidden_size * length  # float32 keys and values
        return {"state": state, "touched": state, **facts}
    one = 4 * config.num_heads * config.head_dim * config.head_v_dim
    shared = config.shared_mem if config.mixture else 0
    stored, touched = (config.num_memories, config.topk) if config.mixture else (1, 1)
    return {"state": one * (stored + shared), "touched": one * (touched + shared), **facts}


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy, its learning rate, and what it costs."""
    heading = ["rule", "pairs", "model", *CELLS, "rate", "state", "touched", "training FLOPs a token", "parameters"]
    rows = []
    for record in records:
        point, result = record["point"], record["result"]
        rule = "–" if point["architecture"] == "attention" else RULE_NAMES[point["rule"]]
        sizes = [f"{round(result[name]):,}" for name in ("state", "touched", "flops", "parameters")]
        name = NAMES[point["architecture"]]
        rows.append([rule, str(point["pairs"]), name, *cells(record), rate_cell(record), *sizes])
    return [heading, *rows]


# Each mixture and what it is held against, by question of the page.
RIVALS = {
    "mom 4/2/1": {"active-state": 3, "total-state": 5},
    "mom 8/2/1": {"active-state": 3, "total-state": 9},
    "mom 8/4/1": {"active-state": 5, "total-state": 9},
}


def contrasts(records: list[Record]) -> list[Contrast]:
    """Each mixture beside one memory, and beside those of its active state, of its total state, of its parameters."""
    groups: dict[tuple[int, str], dict[str, Record]] = {}
    for record in records:
        point = record["point"]
        groups.setdefault((point["pairs"], point["rule"]), {})[point["architecture"]] = record
    made_contrasts = []
    for (pairs, rule), models in groups.items():
        what = f"recall of {pairs} pairs, {RULE_NAMES[rule]}, accuracy"
        learnt = {name: trained(record) for name, record in models.items()}
        for ours, rivals in RIVALS.items():
            named = [("one", "one-memory"), ("parameters", "parameters")] if ours == "mom 4/2/1" else []
            named += [(f"{part} x{n}", question) for question, n in rivals.items() for part in PARTS]
            made_contrasts += [
                Contrast(what, NAMES[ours], NAMES[other], learnt[ours], learnt[other], questions=questions)
                for other, question in named
                if learnt.get(ours) and learnt.get(other)
                for questions in [_questions(question, models[ours], models[other])]
            ]
    return made_contrasts


def _questions(question: str, ours: Record, other: Record) -> tuple[str, ...]:
    """A memory that is larger and has no more parameters answers that question too."""
    is_smaller = other["result"]["parameters"] <= ours["result"]["parameters"]
    return (question, "parameters") if question.endswith("state") and is_smaller else (question,)


def findings(records: list[Record]) -> list[str]:
    """Whether training had come to an end."""
    named = {f"{NAMES[r['point']['architecture']]}, {r['point']['pairs']} pairs": r for r in records}
    return [f"{late_fall(named)} All models of a number of pairs saw as many tokens."]


EXPERIMENT = Experiment(points, run, capacity_plot, table, findings, contrasts, scales=("tiny", "small"))
