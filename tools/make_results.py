"""Runs what is missing of an experiment scale, and writes docs/results.md and docs/results/tiny.md.

    python -m tools.make_results                what is missing of the tiny scale
    python -m tools.make_results --run small    hours
    python -m tools.make_results --run none     only the pages

Finished points stay in docs/results: what is there is not run again. Delete a folder there to measure anew.
"""

import argparse
import inspect
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mom_jax.experiments.common.statistics import HEADING, METHOD, Judged, judge, row  # pyright: ignore[reportMissingImports]
from mom_jax.experiments.registry import EXPERIMENTS, Record, get_experiment, get_module  # pyright: ignore[reportMissingImports]
from mom_jax.experiments.report.questions import Answer, answers  # pyright: ignore[reportMissingImports]
from mom_jax.experiments.sweep import belonging, read_records, sweep_folder  # pyright: ignore[reportMissingImports]

from mom_jax.benchmarks.timing import machine
from mom_jax.drawing import picture
from mom_jax.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BASE = DOCS / "results"

HEAD = """# Results

What the small scale of the experiments found: the evidence that two CPU cores or one GPU can give in hours, from models
of one or two layers that learn synthetic recall, and of some 150,000 parameters that read 10.5 MB of source code. How
language models of 57M parameters rank, only `--scale medium` can say, and of 340M or 1.3B only `--scale paper`; neither
has been run. [results/tiny.md](results/tiny.md) shows that every experiment runs; it claims nothing.

- `mom-jax experiment NAME --scale small` runs one; `python -m tools.make_results --run none` writes this page.
- {method} This page has {count} comparisons. *Ahead* and *behind* mean that the corrected p is below 0.05 and that the
  interval holds no zero, *undecided* all else. Intervals are those of one comparison by itself.
- The learning rate of every model is chosen by the loss on validation rows, on a seed that counts for nothing else; the
  grid is extended until the best rate lies inside. Then fresh seeds are trained, and tested on other rows.
- A run whose accuracy is below 1.5 times that of guessing has failed to train. It is shown in brackets, counted, and
  part of no mean and of no comparison.

Written on {machine}.
"""
TINY_HEAD = """# The tiny scale

Proof that every experiment runs, from its points to its pictures, on two CPU cores in minutes. **It claims nothing**:
models are trained for a few steps or on little text, learning rates are not searched, and there are two or three seeds.
[The results](../results.md) are those of the small scale. `make results` runs what is missing here.

Written on {machine}.
"""


def main() -> None:
    """Runs, then writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=("tiny", "small", "none"), default="tiny", help="scale whose points are run")
    scale = parser.parse_args().run
    for name in EXPERIMENTS:
        if scale in get_experiment(name).scales:
            command = [sys.executable, "-m", "mom_jax", "experiment", name, "--scale", scale, "--out", str(BASE)]
            subprocess.run(command, check=True)
    write(DOCS / "results.md", results())
    write(BASE / "tiny.md", tiny())


def write(path: Path, text: str) -> None:
    """Writes a page and says so."""
    write_atomically(path, text)
    print(f"written: {path.relative_to(ROOT)}")


def finished(scale: str) -> dict[str, list[Record]]:
    """The records of a scale, by experiment; experiments without any are left out."""
    found = {}
    for name in EXPERIMENTS:
        experiment = get_experiment(name)
        if scale in experiment.scales:
            records, _ = experiment.sound(
                belonging(experiment.points(scale), read_records(sweep_folder(BASE, name, scale), print))
            )
            found |= {name: records} if records else {}
    return found


def results() -> str:
    """The page of the small scale: the questions, then every experiment, then all comparisons."""
    records = finished("small")
    judged = judge([c for name, rs in records.items() for c in get_experiment(name).compared("small", rs)])
    head = HEAD.format(machine=machine(), method=METHOD, count=len(judged))
    parts = [head, *(answered(answer) for answer in answers(records, judged))]
    parts += [section(name, "small", rs, DOCS) for name, rs in records.items()]
    return "\n".join([*parts, not_run("small", records), comparisons(judged)])


def not_run(scale: str, records: dict[str, list[Record]]) -> str:
    """How many points of each experiment of a scale have no record."""
    totals = {
        name: len(get_experiment(name).points(scale)) for name in EXPERIMENTS if scale in get_experiment(name).scales
    }
    left = {name: total - len(records.get(name, ())) for name, total in totals.items()}
    names = [f"`{name}` ({left[name]} of {total} points)" for name, total in totals.items() if left[name]]
    return f"## Not yet run at this scale\n\n{', '.join(names) or 'Nothing'}.\n"


def tiny() -> str:
    """The page of the tiny scale."""
    records = finished("tiny")
    parts = [section(name, "tiny", rs, BASE) for name, rs in records.items()]
    return "\n".join([TINY_HEAD.format(machine=machine()), *parts, not_run("tiny", records)])


def answered(answer: Answer) -> str:
    """A question: the answer in a word, its picture, then the rest."""
    short, *long = answer.lines
    parts = [f"## {answer.question}", f"**{short}**" if long else short]
    if answer.draw:
        path = BASE / "questions" / f"{answer.name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(answer.draw))
        parts.append(f"![{answer.question}]({path.relative_to(DOCS)})")
    return "\n\n".join([*parts, *(["\n".join(f"- {line}" for line in long)] if long else [])]) + "\n"


def section(name: str, scale: str, records: list[Record], beside: Path) -> str:
    """An experiment's part of the page in the folder ``beside``."""
    experiment, folder = get_experiment(name), sweep_folder(BASE, name, scale)
    pictures = [f"![{name}: {path.stem}]({path.relative_to(beside)})" for path in experiment.draw(records, folder)]
    count = len(experiment.points(scale))
    parts = [f"## {name}", f"{EXPERIMENTS[name][1].capitalize()}. {facts(name, scale, records, count)}", *about(name)]
    found = [] if scale == "tiny" else experiment.findings(records)
    parts += ["\n".join(f"- {line}" for line in found)] if found else []
    return "\n\n".join([*parts, markdown(experiment.table(records)), *pictures]) + "\n"


def comparisons(judged: Iterable[Judged]) -> str:
    """All of them, with their intervals."""
    rows = [row(one) for one in judged]
    return f"## All comparisons\n\n{METHOD}\n\n{markdown([HEADING, *rows])}\n" if rows else ""


def about(name: str) -> list[str]:
    """The paragraphs of the experiment's module behind its title and commands."""
    paragraphs = (inspect.getdoc(get_module(name)) or "").split("\n\n")
    return [paragraph for paragraph in paragraphs[1:] if not paragraph.startswith(" ")]


def facts(name: str, scale: str, records: list[Record], total: int) -> str:
    """How it was run, when, and for how long."""
    dates = sorted(record["date"] for record in records if "date" in record)
    versions = sorted({f"{package} {v}" for r in records for package, v in r["versions"].items()})
    minutes = sum(record["seconds"] for record in records) / 60
    return (
        f"`mom-jax experiment {name} --scale {scale}`: {len(records)} of {total} points, {dates[0][:10]}, in "
        f"{minutes:.1f} minutes without what other experiments had trained before; {', '.join(versions)}."
    )


def markdown(rows: list[list[str]]) -> str:
    """A table, the heading first."""
    heading, *rest = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    lines = [heading, ["---"] * len(heading), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
