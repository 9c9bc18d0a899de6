"""A sweep: many points, each done once, whatever is stopped and started and on however many machines."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.registry import Experiment, Point, Record
from mom_jax.training.sittings import now, versions


def sweep_folder(base: str | Path, name: str, scale: str) -> Path:
    """Where the records and pictures of an experiment at one scale are."""
    return Path(base).expanduser() / f"{name}-{scale}"


def read_records(folder: Path) -> list[Record]:
    """The finished points of a sweep, of all shards; a line that a crash cut short is left out."""
    records = {}
    for path in sorted(folder.glob("points*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and line.strip():
                record = json.loads(line)
                records.setdefault(_key(record["point"]), record)
    return list(records.values())


def missing(points: Sequence[Point], records: Sequence[Record]) -> list[Point]:
    """The points that have no record yet."""
    done = {_key(record["point"]) for record in records}
    return [point for point in points if _key(point) not in done]


def belonging(points: Sequence[Point], records: Sequence[Record]) -> list[Record]:
    """The records of these points, in their order: what an earlier version of a sweep left is passed over."""
    found = {_key(record["point"]): record for record in records}
    return [found[key] for point in points if (key := _key(point)) in found]


def run_sweep(
    experiment: Experiment,
    points: Sequence[Point],
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    tell: Callable[[int, int, Record], None] = lambda done, total, record: None,
) -> None:
    """Runs the points of a shard that have no record, and writes each one's as a line of JSON when it is done.

    Machines that share the folder never write to the same file; a point belongs to shard ``i`` of ``n`` by its place.

    Args:
        experiment: runs a point.
        points: of the whole sweep.
        folder: of the sweep; made if need be. Models that points train are kept beside it, for all experiments.
        shard: (i, n).
        tell: called after each point with how many of the shard's are done, how many it has, and the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index, count = shard
    mine = points[index::count]
    left = missing(mine, read_records(folder))
    path = folder / (f"points-{index}-of-{count}.jsonl" if count > 1 else "points.jsonl")
    _end_line(path)
    for number, point in enumerate(left, len(mine) - len(left) + 1):
        started = time.monotonic()
        result = experiment.run(point, folder.parent / "models")
        seconds = time.monotonic() - started
        record = {"point": point, "result": result, "seconds": seconds, "date": now(), "versions": versions()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        tell(number, len(mine), record)


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _end_line(path: Path) -> None:
    """Ends a line that a crash cut short, so that the next one stands by itself."""
    if path.is_file() and (text := path.read_text(encoding="utf-8")) and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
