"""Values that no option takes, for every option of every verb; and lines that are no command at all."""

import random
import typing
from collections.abc import Iterator

import pytest
from mom_jax.experiments.command import ExperimentConfig
from mom_jax.experiments.report.command import ReportConfig
from support.fuzz import Trials

from mom_jax.benchmarks.command import BenchConfig
from mom_jax.cli.compare import CompareConfig
from mom_jax.cli.convert import ConvertConfig
from mom_jax.cli.data import PrepareConfig
from mom_jax.cli.evaluate import EvalConfig
from mom_jax.cli.generate import GenerateConfig
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


def written(field: str) -> str:
    """The option of a field; one that is a word of Python's ends with an underscore there, and not here."""
    return "--" + field.removesuffix("_").replace("_", "-")


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
        choices = [x for kind, _ in alternatives(hint) for x in typing.get_args(kind)]
        pool = [[value] for value in [*WORDS, choices[0].upper(), choices[-1][:-1]] if value not in choices]
    return [[], ["1", "2"], *rng.sample(pool, min(count, len(pool)))]


@pytest.mark.parametrize("verb", VERB_LINES)
def test_values(verb: str, trials: Trials, rng: random.Random):
    cls, line = VERB_LINES[verb]
    for field, hint in options(cls):
        option = written(field)
        for words in bad_values(hint, rng, 4 if verb == "train" else 6):
            if words == ["None"] and field.endswith("eos_token_id"):  # of several kinds, one of which is None
                continue
            given = [f"{option}={words[0]}"] if len(words) == 1 and rng.random() < 0.3 else [option, *words]
            trials.refused([*line.split(), *given], NAMED.get(field, field.rpartition(".")[2].removesuffix("_")))


def misspelt(word: str, rng: random.Random) -> str:
    """A word with a letter more, less, or in another place."""
    at = rng.randrange(3, len(word))
    before, letter, behind = word[:at], word[at], word[at + 1 :]
    return rng.choice([f"{before}q{letter}{behind}", before + behind, before[:-1] + letter + before[-1] + behind])


def names_of(cls: type) -> set[str]:
    """The options of a configuration, as they are written."""
    return {written(field) for field, _ in options(cls)}


def test_names_of_options(trials: Trials, rng: random.Random):
    """Misspelt ones, those of other verbs, and dashes where none belong."""
    everywhere = set().union(*(names_of(cls) for cls, _ in VERB_LINES.values()))
    for cls, line in VERB_LINES.values():
        known = names_of(cls)
        foreign = everywhere - known
        wrong = [misspelt(option, rng) for option in sorted(known) * 2]
        wrong += [*sorted(foreign), "--", "---", "--=3", "-x", "--no-", "--nothing", "--model", "--é", "--a b", "--\0"]
        for option in rng.sample([option for option in wrong if option not in known], 12):
            trials.refused([*line.split(), option, "3"])


def test_words(trials: Trials, rng: random.Random):
    """Verbs that are none, too few and too many words."""
    words = ["", " ", "TRAIN", "trian", "--train", "-", "--", "train mom-tiny", "evla", "é", "\0", "x" * 5000]
    for word in words:
        trials.refused([word])
        trials.refused([word, "mom-tiny", "--steps", "1"])
    for _, line in VERB_LINES.values():
        for more in (["extra", "words"], ["", ""], ["\0"], ["mom-tiny", "mom-tiny"], ["gs://bucket/run"]):
            trials.refused([*line.split(), *more])
    alone = ["train", "eval", "generate", "convert", "convert run", "data prepare", "data", "plan", "experiment"]
    for line in [*alone, "report", "compare"]:
        for more in (["--"], ["", "--x"]) if line == "data" else ([], ["--"], [""]):
            trials.refused([*line.split(), *more])
    for preset in ("mom-tinny", "MOM-TINY", "mom", "", "mom-tiny/", "../mom-tiny", "mom-340", "gpt2", "mom-tiny,mom"):
        trials.refused(["train", preset, "--data.path", "nowhere"], "preset")
        trials.refused(["plan", preset], "preset")
        trials.refused(["experiment", preset], "experiment")
        trials.refused(["bench", preset] if preset else ["bench", "a,b"], "tables")
