"""The experiments by name; imports none of them, and no JAX."""

import dataclasses
import difflib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

from mom_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mom_jax.training.config import TrainConfig

Point = dict[str, Any]  # JSON: all that determines one result


class Record(TypedDict):
    """A finished point."""

    point: Point
    result: dict[str, Any]  # null where NaN was measured
    seconds: float
    date: NotRequired[str]
    versions: dict[str, str]


SCALES = {
    "tiny": "minutes: proves that the code runs, and claims nothing",
    "small": "hours of two CPU cores or half an hour of one GPU: the evidence",
    "medium": "a GPU for a day: a table with models of 60M parameters on 1B tokens, or needles at 512 to 16K",
    "paper": "the published sizes",
}


class Contrast(NamedTuple):
    """Two models that are compared.

    Attributes:
        what: is measured.
        first, other: names of the models.
        ours, theirs: a result for each seed.
        lower: lower ones are better.
        questions: of `experiments.report.questions` that this helps to answer.
    """

    what: str
    first: str
    other: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    lower: bool = False
    questions: tuple[str, ...] = ()


# name: (module of `studies` with EXPERIMENT, what it shows)
EXPERIMENTS = {
    "recall": ("recall", "recall by architecture (table 2)"),
    "longbench": ("longbench", "long contexts by architecture (table 3)"),
    "mixed-or-expanded": ("mixed_or_expanded", "several memories or one as large as all (table 4)"),
    "auxiliary-loss": ("auxiliary_loss", "scale of the auxiliary loss, and the shared memory (table 6)"),
    "commonsense": ("commonsense", "language modelling by architecture (table 7)"),
    "hybrid": ("hybrid", "some layers of attention among the memories (table 8)"),
    "equal-activated": ("equal_activated", "equal activated parameters (table 9)"),
    "generation": ("generation", "time and memory of generation by length (figure 3)"),
    "extrapolation": ("extrapolation", "text longer than that of the training (figure 4)"),
    "load-balance": ("load_balance", "what each memory gets, and what keeps it even (figure 5)"),
    "memories": ("memories", "number of memories and share of them that is chosen (figures 6, 8)"),
    "specialisation": ("specialisation", "what goes to which memory (UMAP)"),
    "capacity": ("capacity", "recall against size of state: larger memories, mixtures, attention (not in the paper)"),
    "mqar": ("mqar", "recall at equal state and at equal parameters (not in the paper)"),
    "interference": ("interference", "an old pair after many later ones (not in the paper)"),
    "selective-copy": ("selective_copy", "items among blanks, said again in order (not in the paper)"),
    "context": ("context", "text with context: how much what came before helps (not in the paper)"),
    "needles": ("needles", "needles in texts longer than those of the training (not in the paper)"),
    "routers": ("routers", "the parts of a router, one changed at a time (not in the paper)"),
    "throughput": ("throughput", "training speed by number of memories (not in the paper)"),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a module of an experiment offers.

    Attributes:
        points: the points of a scale, in the order in which they are worth having.
        run: one point's result, JSON-ready; gets a folder where it may keep models that it trains.
        plot: pictures of the records by the names of their files; gets at least one record.
        table: rows of a summary of the records, the heading first.
        findings: what was measured, in words, where nothing is compared over seeds.
        contrasts: the models that are compared over seeds.
        scales: of `SCALES`, those that it has.
        training: the language model that a point trains; none where it trains none.
    """

    points: Callable[[str], list[Point]]
    run: Callable[[Point, Path], dict[str, Any]]
    plot: Callable[[list[Record]], "dict[str, Figure]"]
    table: Callable[[list[Record]], list[list[str]]]
    findings: Callable[[list[Record]], list[str]] = lambda records: []
    contrasts: Callable[[list[Record]], list[Contrast]] = lambda records: []
    scales: tuple[str, ...] = ("tiny", "paper")
    training: Callable[[Point], "TrainConfig | None"] = lambda point: None

    def compared(self, scale: str, records: list[Record]) -> list[Contrast]:
        """`contrasts`; none of the tiny scale, which is there to prove that the code runs."""
        return [] if scale == "tiny" else self.contrasts(records)

    def check_scale(self, name: str, scale: str) -> None:
        """Raises `InputError` for a scale that this experiment, of that name, does not have."""
        if scale not in self.scales:
            raise InputError("scale", scale, f"{name} has {' and '.join(self.scales)}")

    def draw(self, records: list[Record], folder: Path) -> list[Path]:
        """The pictures of `plot` as files of a folder, in the style of all."""
        from mom_jax.drawing import style

        paths = []
        with style():
            for name, figure in self.plot(records).items():
                paths.append(folder / f"{name}.png")
                figure.savefig(paths[-1])
        return paths

    def sound(self, records: list[Record]) -> tuple[list[Record], list[str]]:
        """The records whose results this version can tabulate, and a complaint for each of the others."""
        kept, complaints = [], []
        for record in records:
            try:
                self.table([record])
                self.findings([record])
                self.contrasts([record])
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                complaints.append(f"the result of {json.dumps(record['point'])} has another form ({error!r})")
            else:
                kept.append(record)
        return kept, complaints


def get_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InputError: an unknown name, with the closest known ones.
    """
    return get_module(name).EXPERIMENT


def get_module(name: str) -> Any:
    """The module of an experiment; its docstring says what is compared, on which hardware, and what the paper found.

    Raises:
        InputError: as `get_experiment`.
    """
    check_name(name)
    return importlib.import_module(f"mom_jax.experiments.studies.{EXPERIMENTS[name][0]}")


def check_name(name: str) -> None:
    """Raises `InputError` for a name that is not in `EXPERIMENTS`."""
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS) or list(EXPERIMENTS)
        raise InputError("experiment", name, f"unknown; did you mean {' or '.join(close)}?")
