"""All quantities of two subjects: what is found, what is left out, what fails."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from support.stand_in import LAYERS, StandIn, tokens

from mom_jax.drawing import picture
from mom_jax.evals.compare.budget import error_budget
from mom_jax.evals.compare.comparison import compare, tolerances
from mom_jax.evals.compare.picture import budget_figure, comparison_figure
from mom_jax.evals.compare.tables import budget_table, comparison_tables

LIMITS = tolerances()


def run(ours: StandIn, reference: StandIn, limits=LIMITS):
    return compare(ours, reference, tokens(), 8, limits)


def printed(*tables) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_equal_subjects_agree_in_everything():
    result = run(StandIn(), StandIn())
    assert result.ok and result.rows == (3, 3)
    assert [layer.number for layer in result.layers] == list(range(LAYERS))
    assert [layer.router is None for layer in result.layers] == [False, True, False]
    assert {part.quantity for part in result.outputs} == {
        "logits", "loss/lm", "loss/aux", "loss/total", "decode/prefill", "decode/steps"
    }  # fmt: skip
    assert len(result.gradients) == 2 and result.generation.equal == result.generation.total == 24
    assert all(part.max_abs == 0 for part in (*result.outputs, *result.gradients))


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("hidden/2", (1, 4, 3)),
        ("logits", (0, 11, 6)),
        ("loss/aux", ()),
        ("gradient/model.b", (3, 5)),
        ("decode/prefill", (2, 0, 1)),
        ("decode/steps", (0, 1, 2)),
    ],
)
def test_every_quantity_can_fail_and_says_where(name, at):
    reference = StandIn()
    result = run(reference.changed(name, at, 0.5), reference)
    parts = [*result.outputs, *result.gradients, *(layer.hidden for layer in result.layers)]
    (found,) = (part for part in parts if not part.ok)
    assert (found.quantity, found.where) == (name, at) and found.max_abs == pytest.approx(0.5)
    assert not result.ok and "TOO LARGE" in printed(*comparison_tables(result))
    assert run(reference.changed(name, at, 0.5), reference, tolerances(override=10.0)).ok


def test_a_router_that_differs_without_another_choice_fails():
    reference = StandIn()
    result = run(reference.changed("router/0", (0, 0, 0), 1e-4), reference)
    assert result.layers[0].choices.differing == 0 and not result.layers[0].router.ok and not result.ok


def near_tie(subject: StandIn, row: int, token: int, sign: float) -> StandIn:
    """Puts the second and third memory of a token of layer 2 within rounding of each other."""
    other = subject.changed("router/2", (row, token, 0), 0.0)
    other.record["router/2"][row, token] = [3.0, 1.0, 1.0 + sign * 1e-7, 0.0]
    return other


def test_behind_a_tie_nothing_counts():
    reference, ours = near_tie(StandIn(), 1, 5, 1), near_tie(StandIn(), 1, 5, -1)
    for name in ("hidden/2", "logits"):
        ours = ours.changed(name, (1, 7, 2), 3.0)
    result = run(ours, reference)
    assert result.ok and result.rows == (2, 3)
    assert [layer.compared for layer in result.layers] == [1.0, 1.0, pytest.approx(29 / 36)]
    assert result.layers[2].choices.differing == 1
    for call in ("loss", "decode", "generate"):
        assert [rows for what, rows in ours.asked if what == call] == [[0, 2]]
    text = printed(*comparison_tables(result))
    assert "1 of 3 rows hold a routing choice that differs" in text and "97.22%" in text
    assert not run(ours.changed("hidden/2", (1, 4, 2), 3.0), reference).ok


def test_a_choice_that_differs_without_a_tie_fails():
    reference = StandIn()
    ours = reference.changed("router/2", (1, 5, int(reference.record["router/2"][1, 5].argmin())), 50.0)
    result = run(ours, reference)
    assert not result.layers[2].choices.ok and not result.ok


def test_no_row_left_is_no_agreement():
    reference, ours = StandIn(), StandIn()
    for row in range(3):
        reference, ours = near_tie(reference, row, 0, 1), near_tie(ours, row, 0, -1)
    result = run(ours, reference)
    assert result.rows == (0, 3) and not result.ok and result.generation is None
    assert "no row is left" in printed(*comparison_tables(result))


def test_other_tokens_fail_unless_two_logits_are_equal():
    reference, ours = StandIn(), StandIn()
    ours.continuation[2, 3] = (ours.continuation[2, 3] + 1) % 7
    result = run(ours, reference)
    assert result.generation.equal == 24 - 5 and result.generation.first == (2, 3)
    assert result.generation.lead > 0 and not result.ok
    assert "19 of 24 greedy tokens equal; first other token: row 2, number 3" in printed(*comparison_tables(result))
    best = reference.record["logits"][2, -1].argmax()
    reference.record["logits"][2, -1, (best + 1) % 7] = reference.record["logits"][2, -1, best]
    reference.record["logits"][2, -1, best] += 1e-9
    ours.record = reference.record
    assert run(ours, reference).ok


def test_gradients_of_nothing_but_noise_are_small_beside_the_others():
    reference = StandIn()
    reference.losses["gradient/model.a"] *= 1e-9
    assert run(reference.changed("gradient/model.a", (0, 0), 1e-9), reference).ok


def test_other_parameter_names_are_an_error():
    ours = StandIn()
    ours.losses["gradient/model.c"] = np.zeros(2)
    with pytest.raises(ValueError, match="gradient: other names"):
        run(ours, StandIn())


def test_json_and_picture():
    reference = StandIn()
    broken = reference.changed("hidden/0", (0, 0, 0), math.nan)
    result = run(broken, reference)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["ok"] is False and record["layers"][0]["hidden"]["max_abs"] == "inf"
    assert record["layers"][1]["router"] is None and record["rows"] == {"compared": 3, "of": 3}
    assert [entry["quantity"] for entry in record["gradients"]] == ["gradient/model.a", "gradient/model.b"]
    assert picture(lambda: comparison_figure(result))[:4] == b"\x89PNG"


def noisy(size: float) -> StandIn:
    """A subject whose blocks have a relative error."""
    subject = StandIn()
    subject.error = size
    return subject


def test_the_budget_measures_both_errors():
    budget = error_budget(noisy(1e-3), noisy(4e-3), StandIn(), [tokens()] * 2)
    lines = {line.quantity: line for line in budget.lines}
    assert budget.ok and budget.draws == 2 and budget.compared == 1
    for name in ("block: 0", "block: 1", "block gradients: 1", "block router: 2"):
        assert lines[name].judged
        assert lines[name].ours == pytest.approx(1e-3, rel=0.7)
        assert lines[name].reference == pytest.approx(4 * lines[name].ours, rel=0.01)
    assert "block router: 1" not in lines and lines["model: logits"].ours == 0 and not lines["model: logits"].judged
    assert len(picture(lambda: budget_figure(budget))) > 1000
    worse = error_budget(noisy(4e-3), noisy(1e-3), StandIn(), [tokens()])
    assert not worse.ok and "TOO LARGE" in printed(budget_table(worse))
    assert json.loads(json.dumps(worse.to_dict()))["ok"] is False


def test_the_budget_keeps_other_choices_apart():
    exact = StandIn()
    ours = exact.changed("router/0", (0, 2, int(exact.record["router/0"][0, 2].argmin())), 50.0)
    ours.record["hidden/0"][0, 2:] += 9.0
    budget = error_budget(ours, exact, exact, [tokens()])
    lines = {line.quantity: line for line in budget.lines}
    for name in ("block choices: 0", "model choices: 0"):
        assert lines[name].ours == pytest.approx(1 / 36) and lines[name].reference == 0 and not lines[name].judged
    assert lines["model: 0"].ours == 0 and budget.compared == pytest.approx(26 / 36)
    for row in range(3):
        ours = ours.changed("router/0", (row, 0, int(exact.record["router/0"][row, 0].argmin())), 50.0)
    found = {line.quantity for line in error_budget(ours, exact, exact, [tokens()]).lines}
    assert "block choices: 0" in found and "block: 1" in found and "block: 0" not in found
