"""Needles in a haystack: made-up facts among filler, then a question about them; six tasks of RULER's kinds.

RULER (Hsieh et al., arXiv 2404.06654, section 3) has single, multi-key, multi-value and multi-query needles, variable
tracking and common words. These are the same tasks in words of our own, in English, so scores are not RULER's. A sample
has a length in tokens of any tokenizer: prompt and answer together fill it as far as whole sentences can.

    single           one fact; its number is asked for
    multi_key        one fact is asked for among several with other keys
    multi_value      one key has several numbers; all are asked for
    multi_query      several keys, each with a number; all are asked for
    variables        a number is given to a variable, which is handed on; all that hold it are asked for, among others
    common_words     words of a list; those that stand there far more often are asked for
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mom_jax.data.recall import BLANK, RecallBatch
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, int32 [T]."""
        ...


class Sample(NamedTuple):
    """A question.

    Attributes:
        prompt: haystack and question, up to where the answer begins.
        answers: all of what is asked for, in the order of the prompt, each in four or eight characters.
    """

    prompt: str
    answers: tuple[str, ...]

    @property
    def answer(self) -> str:
        """What continues the prompt."""
        return " " + ", ".join(self.answers)


@dataclasses.dataclass(frozen=True)
class _Haystack:
    """What is scattered, in this order, over filler that is drawn sentence by sentence, and what is asked behind it."""

    facts: Sequence[str]
    filler: Callable[[np.random.Generator], str]
    question: str
    answers: tuple[str, ...]

    def sample(self, rng: np.random.Generator, sentences: int) -> Sample:
        """With so many sentences of filler."""
        text = [self.filler(rng) for _ in range(sentences)]
        places = np.sort(rng.integers(0, sentences + 1, len(self.facts)))
        for fact, place in zip(self.facts[::-1], places[::-1], strict=True):  # from behind: places stay those drawn
            text.insert(int(place), fact)
        return Sample(" ".join([*text, self.question]), self.answers)


_PLACES = ("harbour", "garden", "station", "library", "bridge", "market", "tower", "valley", "island", "forest",
           "school", "museum", "castle", "village", "river", "desert")  # fmt: skip
_FILLER = ("The evening was calm and nobody was in a hurry.", "Rain fell for a while and then it stopped.",
           "A dog slept in the shade of the wall.", "Someone had left a window open upstairs.",
           "The bread was still warm in the morning.", "They walked on without saying much.")  # fmt: skip
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "no", "pi", "ru", "sa", "te", "vo", "wi", "zu")


def _sentence(rng: np.random.Generator) -> str:
    return _FILLER[rng.integers(len(_FILLER))]


def _distinct(rng: np.random.Generator, count: int, low: int, high: int) -> list[int]:
    return (low + rng.choice(high - low, count, replace=False)).tolist()


def _keys(rng: np.random.Generator, count: int) -> list[str]:
    numbers = _distinct(rng, count, 0, 100 * len(_PLACES))
    return [f"{_PLACES[number // 100]} {number % 100:02d}" for number in numbers]


def _needles(rng: np.random.Generator, keys: int, values: int, asked: int) -> _Haystack:
    names = _keys(rng, keys)
    numbers = np.reshape(_distinct(rng, keys * values, 1000, 10_000), (keys, values))
    facts = [(f"The code of {name} is {n}.", name, str(n)) for name, of in zip(names, numbers, strict=True) for n in of]
    facts = [facts[i] for i in rng.permutation(len(facts))]
    wanted = sorted(names[:asked], key=[name for _, name, _ in facts].index)
    answers = tuple(n for name in wanted for _, of, n in facts if of == name)
    noun = "code" if len(answers) == 1 else "codes"
    question = f"Question: give the {noun} of {', '.join(wanted)}. Answer:"
    return _Haystack([fact for fact, _, _ in facts], _sentence, question, answers)


def _variables(rng: np.random.Generator) -> _Haystack:
    chains, steps = 2, 3
    names = [f"V{number}" for number in _distinct(rng, chains * steps, 100, 1000)]
    numbers = _distinct(rng, chains, 1000, 10_000)
    lines = []
    for chain, number in enumerate(numbers):
        of = names[chain * steps : (chain + 1) * steps]
        sources = [str(number), *of]
        lines.append([f"Set {name} to {source}." for name, source in zip(of, sources, strict=False)])
    order = rng.permutation(np.repeat(np.arange(chains), steps))  # chains are interleaved, each in its own order
    facts = [lines[chain].pop(0) for chain in order]
    question = f"Question: name all that were set to {numbers[0]}, directly or not. Answer:"
    return _Haystack(facts, _sentence, question, tuple(names[:steps]))


def _common_words(rng: np.random.Generator) -> _Haystack:
    common, times = 3, 8

    def word(number: int) -> str:
        return "".join(_SYLLABLES[number // 15**place % 15] for place in range(4))

    chosen = [word(number) for number in _distinct(rng, common, 0, 15**4)]
    facts = [chosen[i] for i in rng.permutation(np.repeat(np.arange(common), times))]
    answers = tuple(sorted(chosen, key=facts.index))

    def filler(rng: np.random.Generator) -> str:
        while (other := word(int(rng.integers(15**4)))) in chosen:
            pass
        return other

    return _Haystack(facts, filler, "Question: which words stand here most often? Answer:", answers)


NEEDLES: dict[str, Callable[[np.random.Generator], _Haystack]] = {
    "single": lambda rng: _needles(rng, keys=1, values=1, asked=1),
    "multi_key": lambda rng: _needles(rng, keys=6, values=1, asked=1),
    "multi_value": lambda rng: _needles(rng, keys=1, values=4, asked=1),
    "multi_query": lambda rng: _needles(rng, keys=4, values=1, asked=4),
    "variables": _variables,
    "common_words": _common_words,
}


def needle_sample(task: str, rng: np.random.Generator, tokenizer: Encoder, length: int) -> Sample:
    """A question whose prompt and answer take at most ``length`` tokens, and would not with one sentence more.

    Args:
        task: of `NEEDLES`.
        rng: source of chance.
        tokenizer: counts tokens.
        length: in tokens.

    Raises:
        InputError: an unknown task, or a length in which the facts and the question have no room.
    """
    if task not in NEEDLES:
        raise InputError("task", task, f"choose one of {', '.join(NEEDLES)}")
    haystack, seed = NEEDLES[task](rng), int(rng.integers(2**32))

    def made(sentences: int) -> Sample:
        return haystack.sample(np.random.default_rng(seed), sentences)

    def tokens(sentences: int) -> int:
        sample = made(sentences)
        return len(tokenizer.encode(sample.prompt + sample.answer))

    shortest = tokens(0)
    if shortest > length:
        raise InputError("length", length, f"must be at least {shortest} tokens for a question of {task}")
    low, high, of_sentence = 0, length, 10.0  # that many sentences fit, do not (each has more than one token)
    while high - low > 1:
        number = min(max(int((length - shortest) / of_sentence), low + 1), high - 1)
        if (count := tokens(number)) <= length:
            low = number
        else:
            high = number
        of_sentence = (count - shortest) / number
    return made(low)


def needle_rows(task: str, rng: np.random.Generator, batch: int, tokenizer: Encoder, length: int) -> RecallBatch:
    """Rows to learn or to score: a label stands at each position from which a token of the answer is to be told.

    Blanks (0) fill the beginning of a row, so that all answers end at its end.

    Returns:
        tokens and labels [batch, length]; with a tokenizer of bytes every row has as many labels.

    Raises:
        InputError: as `needle_sample`.
    """
    tokens, labels = np.full((batch, length), BLANK, np.int32), np.full((batch, length), IGNORE, np.int32)
    for row in range(batch):
        sample = needle_sample(task, rng, tokenizer, length)
        ids = tokenizer.encode(sample.prompt + sample.answer)
        answer = len(ids) - len(tokenizer.encode(sample.prompt))
        tokens[row, length - len(ids) :] = ids
        labels[row, -1 - answer : -1] = ids[-answer:]
    return RecallBatch(tokens, labels)
