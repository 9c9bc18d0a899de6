"""Needles: what is asked can be told from the text, and lengths are those of the tokenizer."""

import re

import numpy as np
import pytest

from mom_jax.data.needles import NEEDLES, needle_rows, needle_sample
from mom_jax.data.tokenizer_kinds import ByteTokenizer
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE


class Words:
    """One token for each word."""

    def encode(self, text):
        """Numbers of words."""
        return np.array([hash(word) % 1000 for word in text.split()], np.int32)


def solved(task: str, prompt: str) -> list[str]:
    """The answer, from the text alone."""
    text, question = prompt.split("Question: ")
    if task == "common_words":
        words, counts = np.unique(text.split(), return_counts=True)
        common = words[np.argsort(-counts)[:3]].tolist()
        assert sorted(counts)[-4] < 8 == sorted(counts)[-3]
        return sorted(common, key=text.split().index)
    if task == "variables":
        holds, value = {}, question.split("set to ")[1].split(",")[0]
        for name, source in re.findall(r"Set (V\d+) to (\w+)\.", text):
            holds[name] = holds.get(source, source)
        return [name for name, held in holds.items() if held == value]
    asked = question.split(" of ", 1)[1].split(".")[0].split(", ")
    codes = re.findall(r"The code of (\w+ \d\d) is (\d{4})\.", text)
    return [number for name in asked for of, number in codes if of == name]


@pytest.mark.parametrize("task", NEEDLES)
def test_the_answer_follows_from_the_text(task):
    for seed in range(20):
        sample = needle_sample(task, np.random.default_rng(seed), ByteTokenizer(), 900)
        assert solved(task, sample.prompt) == list(sample.answers)
        assert len(set(sample.answers)) == len(sample.answers) and sample.prompt.endswith("Answer:")


@pytest.mark.parametrize("task", NEEDLES)
@pytest.mark.parametrize(("tokenizer", "lengths"), [(ByteTokenizer(), (700, 2048)), (Words(), (150, 700))])
def test_lengths_are_the_tokenizers(task, tokenizer, lengths):
    """As long as whole sentences allow, whatever a token is."""
    for length in lengths:
        sample = needle_sample(task, np.random.default_rng(length), tokenizer, length)
        assert length - 60 < len(tokenizer.encode(sample.prompt + sample.answer)) <= length


@pytest.mark.parametrize("task", ["single", "multi_value", "common_words"])
def test_needles_lie_anywhere(task):
    """First and last quarter of the text both have some."""
    places = []
    for seed in range(30):
        sample = needle_sample(task, np.random.default_rng(seed), ByteTokenizer(), 2000)
        places += [sample.prompt.index(answer) / len(sample.prompt) for answer in sample.answers]
    assert min(places) < 0.25 and (task == "common_words" or max(places) > 0.7)


@pytest.mark.parametrize("task", NEEDLES)
def test_rows(task):
    """Labels are the answer's bytes, one place ahead, at the end; as many in each row."""
    tokenizer = ByteTokenizer()
    tokens, labels = needle_rows(task, np.random.default_rng(0), 3, tokenizer, 900)
    assert tokens.shape == labels.shape == (3, 900) and len(set((labels != IGNORE).sum(1))) == 1
    for row, wanted in zip(tokens, labels, strict=True):
        (places,) = np.nonzero(wanted != IGNORE)
        np.testing.assert_array_equal(row[places + 1], wanted[places])
        text = tokenizer.decode(row[row != 0])
        prompt, answer = text.split("Answer:")
        assert tokenizer.decode(wanted[places]) == answer
        assert answer.strip().split(", ") == solved(task, prompt + "Answer:")


def test_bad_requests():
    with pytest.raises(InputError, match="task=haystack: choose one of single, "):
        needle_sample("haystack", np.random.default_rng(0), ByteTokenizer(), 512)
    with pytest.raises(InputError, match=r"length=50: must be at least \d+ tokens for a question of single"):
        needle_sample("single", np.random.default_rng(0), ByteTokenizer(), 50)
