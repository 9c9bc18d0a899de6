"""The prompts of the recall set, on documents written here."""

import pytest

from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.evals.harness.recall import RECALL_SETS, contains, cut_document, prompts

PAGE = "Device: a pump. Maker: Acme. Colour: blue. "


def made(name, doc, window=1000):
    """The single row that a document becomes."""
    (row,) = prompts(RECALL_SETS[name], [doc], ByteTokenizer(), window)
    return row


def test_a_key_is_asked_for_once():
    """Where the page ends in the key already; where a block of questions follows; the key's first letter is large."""
    doc = {"text": PAGE + "maker:", "key": "maker", "value": "Acme"}
    assert made("recall_fda", doc) == {"prompt": PAGE.rstrip(". ") + ". Maker:", "labels": ["Acme"]}
    doc = {"text": PAGE + "Summary of information above...\ncolour:", "key": "colour", "value": "blue"}
    assert made("recall_swde", doc)["prompt"] == PAGE.rstrip(". ") + ". Colour:"


def test_a_question_is_asked_once():
    doc = {"context": "[DOC] [TLE] Rivers. The Nile is long. The longest river is ", "question": "the longest river is",
           "answers": ["the Nile", "Nile"]}  # fmt: skip
    row = made("recall_triviaqa", doc)
    assert row["prompt"] == "Rivers. The Nile is long. the longest river is"
    assert row["labels"] == ["the Nile", "Nile"]


def test_squad_stays_as_it_is():
    doc = {"text": " In 1066 the king was\n", "value": "Harold"}
    assert made("recall_squad", doc)["prompt"] == "In 1066 the king was"


@pytest.mark.parametrize(
    ("name", "doc", "expected"),
    [
        ("recall_squad", {"value": "needle"}, "a" * 20 + "needle" + "b" * 14),
        ("recall_squad", {"value": "a" * 5}, "a" * 40),
        ("recall_squad", {"value": "absent"}, "b" * 20),
        ("recall_squad", {"value": "absent", "alt_answers": ["Needle"]}, "a" * 20 + "needle" + "b" * 14),
        ("recall_fda", {"key": "NEEDLE", "value": "bbb"}, "a" * 20 + "needle" + "b" * 14),
    ],
    ids=["middle", "beginning", "absent", "another spelling", "key before value"],
)
def test_the_window_lies_around_the_answer(name, doc, expected):
    text = "a" * 300 + "needle" + "b" * 300
    assert cut_document(RECALL_SETS[name], {"text": text, **doc}, ByteTokenizer(), 40) == expected


def test_the_window_without_anything_to_cut_at_is_the_beginning():
    doc = {"context": "a" * 300 + "needle", "question": "the", "answers": ["needle"]}
    assert cut_document(RECALL_SETS["recall_drop"], doc, ByteTokenizer(), 40) == "a" * 40
    assert cut_document(RECALL_SETS["recall_nq"], doc, ByteTokenizer(), 40) == "a" * 20 + "needle"


def test_answers_of_one_letter_are_left_out():
    docs = [{"text": PAGE, "key": "maker", "value": value} for value in ("A", "Acme")]
    assert len(prompts(RECALL_SETS["recall_fda"], docs, ByteTokenizer(), 100)) == 1


def test_contains():
    doc = {"labels": ["the Nile", "Nile"]}
    assert contains(doc, ["It is the NILE."]) == {"contains": 1.0}
    assert contains(doc, ["the Amazon"]) == {"contains": 0.0}
