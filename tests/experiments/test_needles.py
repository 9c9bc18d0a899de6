"""Needles by length: the points, what is read, how results are shown, and what guessing gives; nothing is trained."""

import json

import numpy as np
import pytest
from mom_jax.experiments.common.architectures import COMPARED
from mom_jax.experiments.common.statistics import judge
from mom_jax.experiments.report.questions import answers
from mom_jax.experiments.studies import needles
from support.made_up import tuned_result

from mom_jax.data.needles import NEEDLES
from mom_jax.data.recall import BLANK
from mom_jax.data.tokenizer_kinds import ByteTokenizer
from mom_jax.labels import IGNORE

SCALES = ["tiny", "small", "medium"]


@pytest.mark.parametrize("scale", SCALES)
def test_points(scale):
    """JSON-ready; every model of all tasks."""
    points = needles.points(scale)
    assert json.loads(json.dumps(points)) == points
    assert [point["architecture"] for point in points] == list(COMPARED)
    assert (
        points[0]["needles"] == {"tiny": ["single"], "small": ["single", "multi_key"], "medium": list(NEEDLES)}[scale]
    )


@pytest.mark.parametrize("scale", SCALES)
def test_rows(scale):
    """Those of a test have one question each, of the tasks in turn; those of lessons are full of one task's."""
    point = needles.points(scale)[0]
    rows = needles.rows_of(point)
    length, tasks = point["lengths"][0], point["needles"]
    test = rows.make(np.random.default_rng(0), 2 * len(tasks))
    asked = (test.labels != IGNORE).sum(1).tolist()
    assert test.tokens.shape == (2 * len(tasks), length) and asked[: len(tasks)] == asked[len(tasks) :]
    assert set(rows.tests) == {f"{task} {length}" for task in tasks for length in point["lengths"]}
    rng, most = np.random.default_rng(1), set()
    for _ in range(60):
        lesson = rows.lessons(rng, 2)
        assert lesson.tokens.shape == (2, length) and lesson.tokens.max() < point["vocab"]
        (labels,) = set((lesson.labels != IGNORE).sum(1).tolist())
        most.add(labels)
    assert set(asked) <= most and max(most) == point["questions"], "the program's places are those that are needed"


def test_lessons_are_questions_in_a_row():
    """Two of 128 bytes in 256, each told by its own facts."""
    rows, rng = needles.rows_of(needles.points("tiny")[0]), np.random.default_rng(0)
    lesson = next(
        lesson for lesson in iter(lambda: rows.lessons(rng, 1), None) if (lesson.labels != IGNORE).sum() == 10
    )
    for tokens, labels in zip(lesson.tokens.reshape(2, 128), lesson.labels.reshape(2, 128), strict=True):
        facts, question = ByteTokenizer().decode(tokens[tokens != BLANK]).split("Question: ")
        answer = ByteTokenizer().decode(labels[labels != IGNORE])
        assert question.endswith(f"Answer:{answer}") and f"is{answer}." in facts


def test_words():
    """A word, a sign, or two digits; the same for every process, and no blank."""
    words = needles.Words(("single",))
    ids = words.encode("The code of harbour 07 is 1234. Answer:")
    assert len(ids) == 11 and ids.min() > BLANK and ids.max() < needles.SMALL.vocab
    np.testing.assert_array_equal(ids, needles.Words(("single",)).encode("The code  of harbour 07 is 1234 .Answer :"))
    assert len(set(words.encode("12 34 1 2 . :").tolist())) == 6
    with pytest.raises(KeyError):
        words.encode("haystack")


def test_guessing():
    """A space and four digits; letters count as digits do; two digits are one token among a hundred."""
    assert needles.guessing("single", words=False) == pytest.approx(1 / 5 + 4 / 5 / 10)
    assert 0.1 < needles.guessing("common_words", words=False) < needles.guessing("multi_query", words=False) < 0.5
    assert needles.guessing("single", words=True) == pytest.approx(0.01)


@pytest.mark.parametrize(("scale", "tasks"), [("small", 2), ("medium", 6)])
def test_table_plot_and_contrasts(tmp_path, scale, tasks):
    points = needles.points(scale)
    tests = [f"{task} {length}" for task in points[0]["needles"] for length in needles.LENGTHS]
    records = [{"point": p, "result": tuned_result([0.5, 0.6, 0.7], tests=tests)} for p in points]
    heading, *rows = needles.table(records)
    assert len(rows) == tasks * len(COMPARED) * len(needles.LENGTHS) and all(len(row) == len(heading) for row in rows)
    assert rows[0][:3] == ["single", "512", "MoM"]
    assert len(needles.contrasts(records)) == 2 * tasks * (len(COMPARED) - 1)
    fell, spread = needles.findings(records)
    assert "fell by" in fell and "MoM 1.00 (1.00 1.00 1.00), single memory 1.00 (" in spread
    for record in records:
        record["result"]["grid"] = []
    assert needles.findings(records) == [fell], "no rate was searched"
    (picture,) = needles.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000


def test_failures_to_train_stand_with_the_question():
    """Those of every experiment whose comparisons answer it, and of the models that are compared."""
    tests = [f"{task} {length}" for task in ("single", "multi_key") for length in needles.LENGTHS]
    failed = {"equal-active": [0.5, 0.01, 0.7], "attention": [0.01, 0.5, 0.6]}
    records = [
        {"point": point, "result": tuned_result(failed.get(point["architecture"], [0.5, 0.6, 0.7]), tests=tests)}
        for point in needles.points("small")
    ]
    active, total, *_ = answers({"needles": records}, judge(needles.contrasts(records)))
    assert active.lines[-1].endswith("comparison: single, equal active state 1 of 3 (needles).")
    assert not any("Failed" in line for line in total.lines)
