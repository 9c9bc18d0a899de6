"""The files of results: added to, never lost to what is damaged."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mom_jax.cli import scores
from mom_jax.evals.results import (
    EVALUATION_FILE,
    TASKS_FILE,
    add_evaluation,
    add_tasks,
    read_evaluations,
    read_tasks,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["tasks", "groups", "others"]), inner),
)
SCORES = {"tokens": 99, "loss": 1.5, "perplexity": 4.5, "bits_per_byte": 2.1, "by_position": []}

TASK = {"metrics": {"acc": 0.5}, "stderr": {}, "higher_is_better": {}, "samples": 3, "step": 1, "lm_eval": "0"}


def evaluation(step: int, windows: int, **changes) -> dict:
    return {"step": step, **SCORES, "sequence_length": 64, "windows": windows, "windows_in_all": 90, **changes}


def test_all_of_the_text_comes_first_and_nothing_is_replaced_but_the_same(tmp_path):
    for step, windows, loss in ((1, 90, 2.0), (1, 16, 2.0), (2, 16, 2.0), (2, 90, 2.0), (2, 16, 1.0)):
        found = add_evaluation(tmp_path, evaluation(step, windows, loss=loss), pytest.fail)
    assert [(e["step"], e["windows"]) for e in found] == [(2, 90), (1, 90), (2, 16), (1, 16)]
    assert found[2]["loss"] == 1.0
    assert found == read_evaluations(tmp_path, pytest.fail)
    content = json.loads((tmp_path / EVALUATION_FILE).read_text(encoding="utf-8"))
    assert content["step"] == 2 and content["windows"] == 90, "the file's own fields are those of the first"


def test_the_form_of_older_versions(tmp_path):
    (tmp_path / EVALUATION_FILE).write_text(json.dumps({"step": 3, "data": "x", **SCORES}), encoding="utf-8")
    assert [e["step"] for e in read_evaluations(tmp_path, pytest.fail)] == [3]


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b'{"step": 1}', b"[" * 100_000])
def test_a_damaged_file_loses_no_new_result(tmp_path, content):
    (tmp_path / EVALUATION_FILE).write_bytes(content)
    (tmp_path / TASKS_FILE).write_bytes(content)
    said: list[str] = []
    assert add_evaluation(tmp_path, evaluation(1, 90), said.append) == [evaluation(1, 90)]
    add_tasks(tmp_path, {"tasks": {"mine": {**TASK, "metrics": {"acc": math.nan}}}, "groups": {}}, said.append)
    assert said and all("\n" not in line for line in said)
    assert read_tasks(tmp_path, pytest.fail)["tasks"]["mine"]["metrics"] == {"acc": None}, "JSON has no NaN"
    if content != b'{"step": 1}':
        assert (tmp_path / f"{EVALUATION_FILE}.damaged").read_bytes() == content


def test_one_damaged_result_takes_no_other_with_it(tmp_path):
    add_evaluation(tmp_path, evaluation(1, 90), pytest.fail)
    path, said = tmp_path / EVALUATION_FILE, list[str]()
    content = json.loads(path.read_text(encoding="utf-8"))
    ragged = {**content, "load": [[1.0], [1.0, 2.0]], "routing_entropy": [1.0, 1.0]}
    others = [3, ragged, {**content, "baselines": {"a": 0}}]
    path.write_text(json.dumps({**content, "others": others}), encoding="utf-8")
    assert read_evaluations(tmp_path, said.append) == [evaluation(1, 90)]
    assert len(said) == 3
    results = {"tasks": {"a": TASK, "b": {**TASK, "metrics": 3}, "c": None}, "groups": []}
    (tmp_path / TASKS_FILE).write_text(json.dumps(results), encoding="utf-8")
    assert read_tasks(tmp_path, said.append) == {"tasks": {"a": TASK}, "groups": {}}
    assert len(said) == 6


@given(JSON)
def test_any_json_is_read_or_left_out_in_lines(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp()
    for name in (EVALUATION_FILE, TASKS_FILE):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    said: list[str] = []
    assert read_evaluations(folder, said.append) == [] and not any(read_tasks(folder, said.append).values())
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"model": {"of_tomorrow": 3}}', "model.of_tomorrow=3: unknown field"),
        ("{}", "has no metrics yet"),
        ("", "damag"),
    ],
)
def test_scores_are_kept_where_no_report_can_be_made(tmp_path, capsys, config, says):
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    (tmp_path / "metrics.jsonl").touch()
    scores._keep_evaluation(str(tmp_path), tmp_path, evaluation(1, 90), Console())
    assert [e["step"] for e in read_evaluations(tmp_path, pytest.fail)] == [1]
    said = capsys.readouterr().err
    assert "report.md was not renewed: " in said and says in said
