"""Models side by side: what is compared, in words, tables and pictures; results are made up, nothing is trained."""

import dataclasses

import pytest
from mom_jax.experiments.common import comparison
from mom_jax.experiments.common.standing import standing, verdict
from mom_jax.experiments.common.text import SIZES, recipe
from mom_jax.experiments.registry import EXPERIMENTS, get_experiment
from mom_jax.experiments.studies import hybrid, memories, recall

from mom_jax.models.config import MoMConfig

COMPARISONS = ("recall", "longbench", "mixed-or-expanded", "auxiliary-loss", "commonsense", "hybrid", "equal-activated")
COMPARISONS += ("memories", "load-balance", "routers")
LAYER = [0.3, 0.2, 0.25, 0.25]


def made_up(point, number):
    """A record as a comparison's run gives it, the better the later."""
    values = {
        measure.value: 1 + 0.1 * number * (-1 if measure.lower else 1) for measure in comparison.MEASURES.values()
    }
    costs = {"parameters": 10_000, "activated": 9_000, "state": 4096}
    history = {"load": [[50, [LAYER, LAYER]], [100, [LAYER, LAYER]]], "routing_churn": [[100, [0.1, 0.3]]]}
    result = {**values, **costs, "load": [LAYER, LAYER], "history": history}
    return {"point": point, "result": result, "seconds": 1.0}


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("name", COMPARISONS)
def test_every_point_is_shown(name, scale, tmp_path):
    """A row for each model and measure, with every seed; a sentence for each measure; pictures."""
    experiment = get_experiment(name)
    points = experiment.points(scale)
    records = [made_up(point, number) for number, point in enumerate(points)]
    heading, *rows = experiment.table(records)
    measured = [(p["size"], measure, p["model"]) for p in points for measure in p["measure"].split("+")]
    groups = set(measured)
    assert len(rows) == len(groups) and all(len(row) == len(heading) for row in rows)
    seeds = heading.index("each seed")
    assert sum(len(row[seeds].split()) for row in rows) == len(measured)
    assert len(experiment.findings(records)) >= len({group[:2] for group in groups})
    assert all(path.stat().st_size > 5_000 for path in experiment.plot(records, tmp_path))
    assert experiment.table(records[:1])[1:], "a sweep that has just begun"
    assert all(path.is_file() for path in experiment.plot(records[:1], tmp_path))


def test_models_are_what_their_names_say():
    """Of the published size and of the tiny one, every model of every comparison can be made."""
    for size in (*SIZES["tiny"], *SIZES["paper"]):
        made = {name: recipe(size, m.rule, m.change, 0).model for name, m in recall.MODELS.items()}
        assert made["MoM"].mixture and made["MoM"].num_memories == 4 and not made["GLA"].mixture
        assert made["Transformer++"].layer_kinds == ("attention",) * made["MoM"].num_hidden_layers
        assert [made[name].memory_rule for name in ("GLA", "RetNet", "HGRN2", "GSA")] == [
            "gla",
            "retnet",
            "hgrn2",
            "gsa",
        ]
        mixed = recipe(size, "gated_deltanet", hybrid.hybrid, 0).model
        assert mixed.attn.layers == ((1,) if size == "tiny" else (7, 15, 23)) and mixed.mixture
        for pair in memories.PAIRS:
            several = recipe(size, "gated_deltanet", memories.several(*pair).change, 0).model
            assert (several.num_memories, several.topk) == pair


def test_the_published_recipe():
    """Tables 2 and 7 of the paper train on 15B and 100B tokens of SlimPajama."""
    for size, tokens in (("mom-340m", 15e9), ("mom-1.3b", 100e9)):
        config = recipe(size, "gated_deltanet", lambda mixture: mixture, 0)
        data = config.data
        assert "SlimPajama" in data.path and (data.tokenizer, data.sequence_length) == ("mistral", 2048)
        assert config.steps * data.batch_size * data.sequence_length == pytest.approx(tokens, rel=0.1)


def test_sizes_go_with_the_recall_task():
    """What the tiny models that learn to recall have in common with those of the experiment of that name."""
    point = {**dataclasses.asdict(comparison.RECALL_TASK), "learning_rate": 1.0, "seed": 0}
    seen = []

    def result(config: MoMConfig, asked, models):
        seen.append(config)
        return {"validation": 1.0 / len(seen)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "recalled", result)
        for name in ("recall", "hybrid"):
            experiment = get_experiment(name)
            experiment.run(next(p for p in experiment.points("tiny") if p["measure"] == "recall"), None)
    assert len(seen) == 2 * len(comparison.TINY_RATES)
    one, two = seen[0], seen[-1]
    assert (one.hidden_size, one.vocab_size, one.num_hidden_layers) == (point["hidden_size"], point["vocab"], 1)
    assert two.num_hidden_layers == 2 and two.attn.layers == (1,)


def test_standing():
    """All seeds beyond all others, or level."""
    assert standing([0.9, 0.8], [0.7, 0.6], lower=False) == "better" == standing([0.6], [0.7], lower=True)
    assert standing([0.6], [0.7], lower=False) == "worse"
    assert standing([0.9, 0.6], [0.7, 0.65], lower=False) == "level" == standing([1.0], [1.0], lower=True)
    assert standing([], [1.0], lower=True) == ""
    said = verdict("x", {"MoM": [1.0, 3.0], "A": [0.5], "B": [2.0], "C": [9.0]})
    assert said == "x: MoM (2) is better than A (0.5); level with B (2); worse than C (9)."


def test_all_experiments_are_in_one_of_these_suites():
    """So that a new one gets its tests."""
    own = {"mqar", "interference", "selective-copy", "generation", "throughput", "extrapolation", "specialisation"}
    assert set(EXPERIMENTS) == own | set(COMPARISONS)
