"""Larger memories beside mixtures: what they cost, and the page's questions, from results that nobody has measured."""

import dataclasses
import json

import pytest
from mom_jax.experiments.common.architectures import mixture
from mom_jax.experiments.common.statistics import judge
from mom_jax.experiments.registry import Contrast
from mom_jax.experiments.report.questions import QUESTIONS, answers, forest
from mom_jax.experiments.studies import capacity
from support.made_up import tuned_result

POINTS = capacity.points("small")


def config_of(name, rule="gated_deltanet"):
    point = {**POINTS[0], "rule": rule, "architecture": name}
    return capacity.MODELS[name](mixture(point))


@pytest.mark.parametrize("rule", capacity.RULES)
def test_what_is_equal(rule):
    """State of a mixture's active and of all of its memories, in each of three forms; parameters of the fourth."""
    costs = {name: capacity.costs(config_of(name, rule), 32) for name in capacity.MODELS}
    one = costs["one"]["state"]
    assert one == 4 * 8 * 16 and costs["attention"]["state"] == 4 * 2 * 64 * 32
    for name, rivals in capacity.RIVALS.items():
        active, total = rivals["active-state"], rivals["total-state"]
        assert costs[name]["state"] == total * one and costs[name]["touched"] == active * one
        for part in ("keys", "values", "heads"):
            assert costs[f"{part} x{active}"]["state"] == costs[f"{part} x{active}"]["touched"] == active * one
            assert costs[f"{part} x{total}"]["state"] == total * one
    assert costs["parameters"]["activated"] == pytest.approx(costs["mom 4/2/1"]["activated"], rel=0.01)
    assert costs["keys x5"]["parameters"] < costs["mom 4/2/1"]["parameters"] < costs["values x5"]["parameters"]


def test_points():
    """Every model for both rules, attention once; of the longer task some, each trained as long; JSON-ready."""
    assert json.loads(json.dumps(POINTS)) == POINTS and len({json.dumps(p) for p in POINTS}) == len(POINTS)
    assert sum(point["pairs"] == 16 for point in POINTS) == 2 * len(capacity.MODELS) - 1
    longer = [point for point in POINTS if point["pairs"] == 32]
    assert {"attention", "mom 4/2/1", "keys x5", "keys x9"} < {point["architecture"] for point in longer}
    assert {(point["rule"], point["steps"]) for point in longer} == {("gated_deltanet", 4500)}
    assert {point["batch_size"] * point["pairs"] for point in POINTS} == {256}


@pytest.fixture(scope="module")
def records():
    """Wider keys are better than the mixture, wider values worse, more heads neither."""
    level = {"keys": 0.9, "values": 0.5, "heads": 0.7}
    made = []
    for number, point in enumerate(POINTS):
        middle = level.get(point["architecture"].split(" ")[0], 0.7)
        accuracies = [middle + 0.002 * ((number * 7 + seed * 3) % 5) for seed in range(4)]
        result = {**tuned_result(accuracies), "state": 512 + number, "touched": 512, "flops": 1000.0 + number}
        result["parameters"] = 50_000 if point["architecture"].startswith(("values", "heads")) else 40_000
        made.append({"point": point, "result": result})
    return made


def test_the_questions_are_answered_from_intervals(records):
    """Ahead, behind and undecided as the intervals say; what was not run is said not to have been."""
    contrasts = capacity.contrasts(records)
    judged = judge(contrasts)
    by_name = {answer.name: answer for answer in answers({"capacity": records}, judged)}
    assert list(by_name) == list(QUESTIONS)
    total = by_name["total-state"]
    assert total.lines[0].startswith("It depends on what it is compared with: of ")
    assert total.lines[1] == (
        "By what stands against it: against one, more heads: 0 ahead, 0 behind, 7 undecided; against one, wider keys: "
        "0 ahead, 8 behind, 0 undecided; against one, wider values: 7 ahead, 0 behind, 0 undecided."
    )
    assert "is ahead of one, wider values x5 (+0.2" in total.lines[2]
    assert "; behind one, wider keys x5 (-0.2" in total.lines[2]
    assert "; undecided against one, more heads x5" in total.lines[2] and "4 and 4 seeds" in total.lines[2]
    assert {one.verdict for one in total.judged if "keys" in one.contrast.other} == {"worse"}
    no_larger = {"one, MLP of equal parameters", *(f"one, wider keys x{n}" for n in (3, 5, 9))}
    assert {one.contrast.other for one in by_name["parameters"].judged} == no_larger
    assert by_name["router-loss"].lines == [
        "Not yet run at the small scale: `mom-jax experiment load-balance --scale small`."
    ]
    assert "times the training FLOPs" in by_name["cost"].lines[1] and by_name["cost"].judged == []


def test_failures_to_train_are_told_with_the_answer(records):
    """With their number, beside the comparison that is made without them."""
    failing = []
    for record in records:
        name, result = record["point"]["architecture"], record["result"]
        accuracies = [0.5, 0.01, 0.52, 0.02] if name == "parameters" else [run["accuracy"] for run in result["runs"]]
        runs = [{**run, "accuracy": accuracy} for run, accuracy in zip(result["runs"], accuracies, strict=True)]
        failing.append({**record, "result": {**result, "runs": runs}})
    by_name = {answer.name: answer for answer in answers({"capacity": failing}, judge(capacity.contrasts(failing)))}
    assert "one, MLP of equal parameters 2 of 4 (GLA, 16 pairs)" in by_name["parameters"].lines[-1]
    assert "4 and 2 seeds" in by_name["parameters"].lines[2] and "Failed" not in by_name["total-state"].lines[-1]


def test_an_answer_is_yes_only_where_every_interval_says_so():
    better = Contrast("recall", "MoM", "one", (0.9, 0.91, 0.92), (0.5, 0.51, 0.52), questions=("active-state",))
    unknown = better._replace(theirs=(0.9, 0.91, 0.92))
    worse = better._replace(ours=better.theirs, theirs=better.ours)
    for contrasts, word in (([better] * 2, "Yes"), ([worse], "No"), ([unknown] * 3, "Undecided"),
                            ([better, unknown], "It depends")):  # fmt: skip
        first = answers({}, judge(contrasts))[0]
        assert first.lines[0].startswith(word), first.lines


def test_table_and_pictures(records, tmp_path):
    heading, *rows = capacity.table(records)
    assert len(rows) == len(POINTS) and all(len(row) == len(heading) for row in rows)
    pictures = capacity.EXPERIMENT.draw(records, tmp_path)
    assert [path.name for path in pictures] == [
        f"{name}-{pairs}-pairs.png" for pairs in (16, 32) for name in ("accuracy", "course")
    ]
    assert "fell by 16.7 to 16.7 %" in capacity.findings(records)[0], "from 1.2 to 1.0"
    forest(judge(capacity.contrasts(records)[:3]), "Which?").savefig(tmp_path / "forest.png")
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
    assert dataclasses.is_dataclass(capacity.EXPERIMENT) and capacity.EXPERIMENT.scales == ("tiny", "small")
