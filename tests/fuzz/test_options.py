"""Values that no option takes, for every option of every verb; and lines that are no command at all."""

import os
import random
import string
import typing
from collections.abc import Iterator

import pytest
from support.fuzz import Trials

from benchmarks.command import BenchConfig
from experiments.command import ExperimentConfig
from experiments.report.command import ReportConfig
from mom_jax.cli.compare import CompareConfig
from mom_jax.cli.convert import ConvertConfig
from mom_jax.cli.data import PrepareConfig
from mom_jax.cli.evaluate import EvalConfig
from mom_jax.cli.generate import GenerateConfig
from mom_jax.cli.main import VERBS
from mom_jax.cli.plan import Plan
from mom_jax.cli.train import TrainArguments
from mom_jax.fields import alternatives, field_types

pytestmark = pytest.mark.fuzz

# Each verb with a line that is refused in the end for another reason, so that a value that slips through runs nothing.
VERB_LINES = {
    "train": (TrainArguments, "train mom-tiny --data.path nowhere --run-dir run"),
    "eval": (EvalConfig, "eval nowhere"),
    "generate": (GenerateConfig, "generate nowhere --prompt a"),
    "convert": (ConvertConfig, "convert nowhere out"),
    "data prepare": (PrepareConfig, "data prepare out --data.path nowhere"),
    "compare": (CompareConfig, "compare --reference nowhere"),
    "plan": (Plan, "plan mom-tiny"),
    "experiment": (ExperimentConfig, "experiment mqar --plot"),
    "report": (ReportConfig, "report nowhere"),
    "bench": (BenchConfig, "bench nothing"),
}
NUMBERS = ["nan", "inf", "-inf", "1e400", "-7", "-1e9", "abc", "", "9" * 40, "9" * 5000, "-" + "9" * 40, "0x10", "1,5",
           "½", "1e", "True", "[1]", "1__0", "+-1", "1;2"]  # fmt: skip
WHOLE = ["1.5", "1e3", "0.0", ".5"]
WORDS = ["", "abc", "None", "nan", "0", "ALL", "none none"]
FLAGS = ["True", "False", "1", "yes", "None", "no"]
NAMED = {"beside": "baseline"}  # options that the message calls otherwise


def options(cls: type, prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    """Names and types of the options that a configuration has, those of its parts included."""
    for name, hint in field_types(cls).items():
        kinds = [kind for kind, _ in alternatives(hint)]
        if hasattr(kinds[0], "__dataclass_fields__"):
            yield from options(kinds[0], f"{prefix}{name}.")
        elif "Positional" not in str(hint):
            yield prefix + name, hint


def bad_values(hint: typing.Any, rng: random.Random, count: int) -> list[list[str]]:
    """Words to write behind an option which none of its types takes; the option alone is the first."""
    kinds = [typing.get_origin(kind) or kind for kind, _ in alternatives(hint)]
    if kinds == [bool]:
        return [[value] for value in rng.sample(FLAGS, min(count, len(FLAGS)))]
    if tuple in kinds:
        item = next(typing.get_args(kind)[0] for kind, _ in alternatives(hint) if typing.get_origin(kind) is tuple)
        return [words for words in bad_values(item, rng, count) if len(words) == 1]
    pool = [["\0"], [""]]
    if int in kinds or float in kinds:
        pool = [[value] for value in NUMBERS]
        pool += [[value] for value in WHOLE if float not in kinds] + [["None"]] * (type(None) not in kinds)
    elif typing.Literal in kinds:
        (choices,) = (typing.get_args(kind) for kind, _ in alternatives(hint) if typing.get_origin(kind) is typing.Literal)
        pool = [[value] for value in [*WORDS, choices[0].upper(), choices[-1][:-1]] if value not in choices]
    return [[], ["1", "2"], *rng.sample(pool, min(count, len(pool)))]


@pytest.mark.parametrize("verb", VERB_LINES)
def test_values(verb: str, trials: Trials, rng: random.Random):
    cls, line = VERB_LINES[verb]
    for field, hint in options(cls):
        option = "--" + field.replace("_", "-")
        for words in bad_values(hint, rng, 4 if verb == "train" else 6):
            given = [f"{option}={words[0]}"] if len(words) == 1 and rng.random() < 0.3 else [option, *words]
            trials.refused([*line.split(), *given], NAMED.get(field, field.rpartition(".")[2]))
