"""Models side by side: what is compared, in words, tables and pictures; results are made up, nothing is trained."""

import pytest
from mom_jax.experiments.common import comparison
from mom_jax.experiments.common.text import SIZES, recipe
from mom_jax.experiments.registry import EXPERIMENTS, get_experiment
from mom_jax.experiments.studies import hybrid, memories, recall
from support.made_up import tuned_result

from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig

COMPARISONS = ("recall", "longbench", "mixed-or-expanded", "auxiliary-loss", "commonsense", "hybrid", "equal-activated")
COMPARISONS += ("memories", "load-balance", "routers")
LAYER = [0.3, 0.2, 0.25, 0.25]


def made_up(point, number):
    """A record as a comparison's run gives it, the better the later."""
    if point["measure"] == "recall":
        return {"point": point, "result": tuned_result([0.5, 0.6 + 0.01 * number]), "seconds": 1.0}
    values = {
        measure.value: 1 + 0.1 * number * (-1 if measure.lower else 1) for measure in comparison.MEASURES.values()
    }
    costs = {"parameters": 10_000, "activated": 9_000, "state": 4096}
    history = {"load": [[50, [LAYER, LAYER]], [100, [LAYER, LAYER]]], "routing_churn": [[100, [0.1, 0.3]]]}
    result = {**values, **costs, "load": [LAYER, LAYER], "history": history}
    return {"point": point, "result": result, "seconds": 1.0}


@pytest.mark.parametrize("scale", ["tiny", "small", "medium", "paper"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_every_point_is_shown(name, scale, tmp_path):
    """A row for each model and measure, with every seed; the first model beside each other one; pictures."""
    experiment = get_experiment(name)
    if scale not in experiment.scales:
        with pytest.raises(InputError, match=r"scale=small: .* has tiny and medium and paper"):
            experiment.check_scale(name, scale)
        return
    points = experiment.points(scale)
    records = [made_up(point, number) for number, point in enumerate(points)]
    heading, *rows = experiment.table(records)
    measured = [(p["size"], measure, p["model"]) for p in points for measure in p["measure"].split("+")]
    groups = set(measured)
    assert len(rows) == len(groups) and all(len(row) == len(heading) for row in rows)
    seeds = heading.index("each seed (at chance)")
    assert sum(len(row[seeds].split()) for row in rows) == sum(2 if m[1] == "recall" else 1 for m in measured)
    contrasts = experiment.compared(scale, records)
    beside_first = len(groups) - len({group[:2] for group in groups})
    by_pairs = {"mixed-or-expanded": 2, "load-balance": 4 if scale == "small" else 2}
    expected = by_pairs[name] * len({group[:2] for group in groups}) if name in by_pairs else beside_first
    assert len(contrasts) == (0 if scale == "tiny" else expected)
    assert experiment.table(records[:1])[1:], "a sweep that has just begun"
    if scale == experiment.scales[-1]:  # pictures take what tables take a hundred times, and differ in numbers alone
        assert all(path.stat().st_size > 5_000 for path in experiment.draw(records, tmp_path))
        assert all(path.is_file() for path in experiment.draw(records[:1], tmp_path))


def test_models_are_what_their_names_say():
    """Of the published size and of the tiny one, every model of every comparison can be made."""
    for size in (*SIZES["tiny"], *SIZES["medium"], *SIZES["paper"]):
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
        assert mixed.attn.layers == {"tiny": (1,), "medium": (7,)}.get(size, (7, 15, 23)) and mixed.mixture
        for pair in memories.PAIRS:
            several = recipe(size, "gated_deltanet", memories._MODELS[memories.label(*pair)].change, 0).model
            assert (several.num_memories, several.topk) == pair


def test_the_published_recipe():
    """Tables 2 and 7 of the paper train on 15B and 100B tokens of SlimPajama."""
    for size, tokens in (("mom-340m", 15e9), ("mom-1.3b", 100e9)):
        config = recipe(size, "gated_deltanet", lambda mixture: mixture, 0)
        data = config.data
        assert "SlimPajama" in data.path and (data.tokenizer, data.sequence_length) == ("mistral", 2048)
        assert config.steps * data.batch_size * data.sequence_length == pytest.approx(tokens, rel=0.1)


def test_recall_is_the_task_of_its_scale():
    """With every rate and seed in one point; the hybrid has two layers, all else one."""
    seen = []

    def result(config: MoMConfig, point, models):
        seen.append((config, point))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "recalled", result)
        for name in ("recall", "hybrid"):
            for scale in ("tiny", "small"):
                experiment = get_experiment(name)
                experiment.run(next(p for p in experiment.points(scale) if p["measure"] == "recall"), None)
    (tiny, _), (small, point), (two, _), _ = seen
    assert (tiny.hidden_size, tiny.num_hidden_layers) == (comparison.RECALL["tiny"].hidden_size, 1)
    assert (small.hidden_size, small.vocab_size) == (64, 512) and len(point["rates"]) >= 4 and len(point["seeds"]) >= 3
    assert two.num_hidden_layers == 2 and two.attn.layers == (1,)


def test_all_experiments_are_in_one_of_these_suites():
    """So that a new one gets its tests."""
    own = {"capacity", "mqar", "interference", "selective-copy", "needles", "context"}
    own |= {"generation", "throughput", "extrapolation", "specialisation"}
    assert set(EXPERIMENTS) == own | set(COMPARISONS)
