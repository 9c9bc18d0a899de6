"""Needles in texts longer than those of the training, by models of equal state; the paper has no such result.

    mom-jax experiment needles --scale tiny       two CPU cores, four minutes
    mom-jax experiment needles --scale small      two CPU cores, two hours and a half
    mom-jax experiment needles --scale medium     one GPU, a day

Six tasks of RULER's kinds (arXiv 2404.06654) in words of our own (`mom_jax.data.needles`): one number in a haystack,
among other keys, several of one key, of several keys, variables handed on, and the most frequent words of a list. A
model learns all tasks of a scale at one length, and is asked each at that length and at longer ones: only the haystack
grows. Answers are counted token by token. The models are those of `studies/mqar.py` of equal state, with short
convolutions. A row of the training holds as many questions of one task and one length as fit: the full length, or half
of it and so on, as short as the facts allow.

Tiny: one number, 256 bytes, asked at 256 and 512. Small: one number, and one of six keys, at 512 tokens, asked at up
to 16,384. A token is a word, a sign, or two digits: guessing is right in one of a hundred, and telling the number of
any of the six keys in one of six. Two layers of width 64 with one head of 16 key and 32 value channels, 4 memories of
which 2 are chosen, 1,500 steps of 8 rows for every model: a common budget, in which not every seed learns to tell
keys apart, so that what is compared is how surely a task is learnt in it as well as what a state holds. Attention,
which has no short convolutions, has hardly begun to learn by then: its row tells how late it learns, not what it can
hold. Medium: all six in 512 bytes, asked at up to 16,384; width 128 with 32 key and 64 value channels, 10,000 steps of
16 rows.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mom_jax.data.needles import NEEDLES, Encoder, needle_rows, needle_sample
from mom_jax.data.recall import RecallBatch
from mom_jax.data.tokenizer_kinds import ByteTokenizer
from mom_jax.drawing import legend_below

from ..common.architectures import ARCHITECTURES, COMPARED, architecture, mixture
from ..common.rows import Rows
from ..common.seeds import CELLS, Task, beside_mixture, cells, draw, late_fall, learned, points_of, rate_cell
from ..common.tuned import GRID, SEEDS
from ..registry import Contrast, Experiment, Point, Record

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
_TOKEN = re.compile(r"\d{1,2}|[A-Za-z]+|[^\sA-Za-z\d]")
_SAMPLES = 200  # questions that show what all of a task have in common


class Words:
    """A token is a word, a sign, or up to two digits, of those that the given tasks are made of."""

    def __init__(self, needles: tuple[str, ...]):
        numbers = {f"{number:0{digits}d}" for digits in (1, 2) for number in range(10**digits)}
        words = {word for needle in needles for text in _texts(needle, 50) for word in _TOKEN.findall(text)}
        self._ids = {word: 1 + i for i, word in enumerate(sorted(numbers | words))}

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, int32 [T]; none is 0."""
        return np.asarray([self._ids[word] for word in _TOKEN.findall(text)], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Task):
    """Tasks of `NEEDLES`, learnt together, and the lengths at which each is asked, the first in training."""

    task: str = "mqar"  # plain tokens: models have short convolutions
    needles: tuple[str, ...]
    lengths: tuple[int, ...]
    words: bool = False  # what a token is: a byte otherwise


TINY = Needles(needles=("single",), lengths=(256, 512), vocab=ByteTokenizer.vocab_size, hidden_size=32, num_layers=1,
               head_dim=8, num_memories=4, steps=25, batch_size=8, questions=10, rates=(3e-3,), seeds=(0, 1),
               test_rows=32)  # fmt: skip
SMALL = Needles(needles=("single", "multi_key"), words=True, lengths=LENGTHS, vocab=256, hidden_size=64, num_layers=2,
                head_dim=16, num_memories=4, steps=1500, batch_size=8, questions=32, rates=GRID, seeds=SEEDS,
                together=4, test_rows=64)  # fmt: skip
MEDIUM = Needles(needles=tuple(NEEDLES), lengths=LENGTHS, vocab=ByteTokenizer.vocab_size, hidden_size=128, num_layers=2,
                 head_dim=32, num_memories=4, steps=10_000, batch_size=16, questions=46, rates=GRID, seeds=SEEDS,
                 test_rows=64)  # fmt: skip
TASKS = {"tiny": TINY, "small": SMALL, "medium": MEDIUM}


def points(scale: str) -> list[Point]:
    """Every model."""
    task = TASKS[scale]
    lists = {"needles": list(task.needles), "lengths": list(task.lengths)}
    return [{**point, **lists} for point in points_of(task, COMPARED)]


def run(point: Point, models: Path) -> dict[str, Any]:
    """Trains a model at the first length, and asks it at all."""
    config = architecture(point["architecture"], mixture(point))
    config = dataclasses.replace(config, impl="xla", initializer_range=point["hidden_size"] ** -0.5)
    chance = float(np.mean([guessing(needle, point["words"]) for needle in point["needles"]]))
    return learned(point, config, rows_of(point), models, chance)


def rows_of(point: Point) -> Rows:
    """Questions of all tasks at the first length, lessons of as many as fit, and tests by task and length."""
    needles, lengths, encoder = point["needles"], point["lengths"], encoder_of(point)
    facts = {"task": "needles", "needles": needles, "lengths": lengths, "words": point["words"]}
    shorter = {needle: lesson_lengths(needle, encoder, lengths[0]) for needle in needles}
    tests = {
        test_name(needle, length): functools.partial(_asked, [needle], encoder, length)
        for needle in needles
        for length in lengths
    }
    make = functools.partial(_asked, needles, encoder, lengths[0])
    return Rows(facts, make, functools.partial(_lessons, shorter, encoder), tests)


def encoder_of(point: Point) -> Encoder:
    """What makes tokens of a point's texts."""
    return Words(tuple(point["needles"])) if point["words"] else ByteTokenizer()


def test_name(needle: str, length: int) -> str:
    """What a result calls the questions of a task and a length."""
    return f"{needle} {length}"


def _texts(needle: str, sentences: int) -> list[str]:
    """Questions with their answers, `_SAMPLES` of them."""
    rng = np.random.default_rng(0)
    samples = [NEEDLES[needle](rng).sample(rng, sentences) for _ in range(_SAMPLES)]
    return [sample.prompt + sample.answer for sample in samples]


def lesson_lengths(needle: str, encoder: Encoder, length: int) -> list[int]:
    """The length of the training, half of it and so on, with a tenth to spare for the longest facts."""
    least = 1.1 * max(len(encoder.encode(text)) for text in _texts(needle, 0))
    return [length >> halvings for halvings in range(length.bit_length()) if length >> halvings >= least]


def _asked(needles: list[str], encoder: Encoder, length: int, rng: np.random.Generator, batch: int) -> RecallBatch:
    """One question a row; the tasks take turns."""
    rows = [needle_rows(needles[row % len(needles)], rng, 1, encoder, length) for row in range(batch)]
    return RecallBatch(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def _lessons(lengths: dict[str, list[int]], encoder: Encoder, rng: np.random.Generator, batch: int) -> RecallBatch:
    """Rows of as many questions as fit: of one task and of one length, drawn."""
    needle = list(lengths)[rng.integers(len(lengths))]
    length, whole = int(rng.choice(lengths[needle])), max(lengths[needle])
    tokens, labels = needle_rows(needle, rng, batch * whole // length, encoder, length)
    return RecallBatch(tokens.reshape(batch, whole), labels.reshape(batch, whole))


def guessing(needle: str, words: bool) -> float:
    """Share of an answer's tokens that is right by its form alone: all signs, and one in ten of letters and digits."""
    answer = needle_sample(needle, np.random.default_rng(0), ByteTokenizer(), 1024).answer
    tokens = _TOKEN.findall(answer) if words else list(answer)
    return float(np.mean([0.1 ** sum(map(str.isalnum, token)) for token in tokens]))


def table(records: list[Record]) -> list[list[str]]:
    """Every model's share of right tokens, by task and length."""
    heading = ["task", "length", "model", *CELLS, "rate", "state"]
    rows = []
    for needle, length in _tests(records):
        for record in records:
            name, first = ARCHITECTURES[record["point"]["architecture"]][0], record["result"]["runs"][0]
            ends = [rate_cell(record), f"{first['state']:,}"]
            rows.append([needle, f"{length:,}", name, *cells(record, test_name(needle, length)), *ends])
    return [heading, *rows]


def _tests(records: list[Record]) -> list[tuple[str, int]]:
    point = records[0]["point"]
    return [(needle, length) for needle in point["needles"] for length in point["lengths"]]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Right tokens against length, a panel for each task."""
    needles, lengths = records[0]["point"]["needles"], records[0]["point"]["lengths"]
    columns = min(3, len(needles))
    figure = Figure(
        figsize=(max(7.5, 3.6 * columns + 0.6), 3.0 * -(-len(needles) // columns) + 1.2), layout="constrained"
    )
    grid = figure.subplots(-(-len(needles) // columns), columns, sharey=True, squeeze=False)
    ticks = [f"{length // 1024}K" if length >= 1024 else str(length) for length in lengths]
    for axes, needle in zip(grid.flat, needles, strict=False):
        tests = [test_name(needle, length) for length in lengths]
        for number, (record, marker) in enumerate(zip(records, "os^DvP*X", strict=False)):
            label, colour = ARCHITECTURES[record["point"]["architecture"]]
            places = [length * 1.04 ** (number - len(records) // 2) for length in lengths]  # intervals lie side by side
            draw(axes, places, [record] * len(lengths), tests, color=colour, label=label, fmt=f"{marker}-",
                 markersize=5)  # fmt: skip
        axes.set(title=needle.replace("_", " "), ylim=(0, 1.03), xlabel="length (tokens)")
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, ticks)
        axes.xaxis.set_minor_locator(NullLocator())
    grid[0][0].set_ylabel("right tokens of the answer")
    legend_below(figure, 3)
    return {"length": figure}


def findings(records: list[Record]) -> list[str]:
    """Whether training had come to an end, and how far apart the seeds ended."""
    named = {ARCHITECTURES[record["point"]["architecture"]][0]: record for record in records}
    searched = {name: record for name, record in named.items() if record["result"]["grid"]}
    return [f"{late_fall(named)} All models saw as many tokens.", *([_spread(searched)] if searched else [])]


def _spread(named: dict[str, Record]) -> str:
    """The last validation loss of every model's seeds."""
    told = []
    for name, record in named.items():
        result = record["result"]
        losses = " ".join(f"{run['losses'][-1][1]:.2f}" for run in result["runs"])
        told.append(f"{name} {dict(result['grid'])[result['learning_rate']]:.2f} ({losses})")
    seeds = "of the seed that chose the rate, and in brackets of those that count"
    return f"Validation loss in nats {seeds}: {', '.join(told)}."


def contrasts(records: list[Record]) -> list[Contrast]:
    """The mixture beside every other model, of each task at the first and the last length."""
    lengths = records[0]["point"]["lengths"]
    return [
        contrast
        for needle in records[0]["point"]["needles"]
        for length in (lengths[0], lengths[-1])
        for contrast in beside_mixture(
            f"needles, {needle}, {length:,} tokens, accuracy", records, test_name(needle, length)
        )
    ]


EXPERIMENT = Experiment(points, run, plot, table, findings, contrasts, scales=("tiny", "small", "medium"))
