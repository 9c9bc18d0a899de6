"""Runs what is missing of every experiment's tiny scale and writes docs/results.md.

    python -m tools.make_results

Finished points stay in docs/results: what is there is not run again. Delete a folder there to measure anew.
"""

import argparse
import inspect
import subprocess
import sys
from pathlib import Path

from mom_jax.experiments.registry import EXPERIMENTS, Record, get_experiment, get_module  # pyright: ignore[reportMissingImports]
from mom_jax.experiments.sweep import belonging, read_records, sweep_folder  # pyright: ignore[reportMissingImports]

from mom_jax.benchmarks.timing import machine

ROOT = Path(__file__).resolve().parents[1]
BASE, PAGE = ROOT / "docs/results", ROOT / "docs/results.md"

HEAD = """# Results of the tiny scale

Every experiment at the scale that a machine without a GPU can run: `make results` runs what is missing and writes this
page; `mom-jax experiment NAME --scale tiny` runs one. Models of this size say how architectures differ in what they can
store and tell apart; how language models of 340M or 1.3B parameters rank, only `--scale paper` can say. All seeds are
shown. *Better* and *worse* mean that all seeds of one are beyond all seeds of the other, *level* all else.

Written on {machine}.
"""


def main() -> None:
    """Runs, then writes the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in EXPERIMENTS:
        subprocess.run([sys.executable, "-m", "mom_jax", "experiment", name, "--out", str(BASE)], check=True)
    sections = [section(name) for name in EXPERIMENTS]
    short = "\n".join(line for lines, _ in sections for line in lines)
    pages = "\n".join(text for _, text in sections)
    PAGE.write_text(f"{HEAD.format(machine=machine())}\n## Where MoM stands\n\n{short}\n\n{pages}", encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


def section(name: str) -> tuple[list[str], str]:
    """What an experiment found, in sentences; and its part of the page."""
    experiment, folder = get_experiment(name), sweep_folder(BASE, name, "tiny")
    points = experiment.points("tiny")
    records = belonging(points, read_records(folder, print))
    findings = experiment.findings(records)
    pictures = [f"![{name}: {path.stem}]({path.relative_to(PAGE.parent)})" for path in experiment.draw(records, folder)]
    anchor = name.replace(" ", "-")
    parts = [f"## {name}", f"{EXPERIMENTS[name][1].capitalize()}. {facts(name, records, len(points))}", *about(name)]
    parts += ["\n".join(f"- {line}" for line in findings)] if findings else []
    text = "\n\n".join([*parts, markdown(experiment.table(records)), *pictures]) + "\n"
    return [f"- [{name}](#{anchor}): {line}" for line in findings], text


def about(name: str) -> list[str]:
    """The paragraphs of the experiment's module behind its title and commands."""
    paragraphs = (inspect.getdoc(get_module(name)) or "").split("\n\n")
    return [paragraph for paragraph in paragraphs[1:] if not paragraph.startswith(" ")]


def facts(name: str, records: list[Record], total: int) -> str:
    """How it was run, when, and for how long."""
    dates = sorted(record["date"] for record in records)
    versions = sorted({f"{package} {v}" for r in records for package, v in r["versions"].items()})
    minutes = sum(record["seconds"] for record in records) / 60
    return (
        f"`mom-jax experiment {name} --scale tiny`: {len(records)} of {total} points, {dates[0][:10]}, in "
        f"{minutes:.1f} minutes without what other experiments had trained before; {', '.join(versions)}."
    )


def markdown(rows: list[list[str]]) -> str:
    """A table, the heading first."""
    heading, *rest = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    lines = [heading, ["---"] * len(heading), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
