"""A sweep: many points, each done once, whatever is stopped and started and on however many machines."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from mom_jax.files import json_line, readable_lines, with_nan
from mom_jax.locks import only_writer
from mom_jax.paths import local_path, output_folder
from mom_jax.training.sittings import now, versions

from .registry import Experiment, Point, Record


def sweep_folder(base: str | Path, name: str, scale: str) -> Path:
    """Where the records and pictures of an experiment at one scale are."""
    return local_path(base, "out") / f"{name}-{scale}"


def read_records(folder: Path, complain: Callable[[str], None]) -> list[Record]:
    """The finished points of a sweep, of all shards; a line that a crash cut short is left out.

    Args:
        folder: of the sweep.
        complain: gets a line for each one that is damaged and left out.
    """
    records: dict[str, Record] = {}
    for path in sorted(folder.glob("points*.jsonl")):
        for record in readable_lines(path, Record, complain):
            records.setdefault(_key(record["point"]), {**record, "result": with_nan(record["result"])})
    return list(records.values())


def missing(points: Sequence[Point], records: Sequence[Record]) -> list[Point]:
    """The points that have no record yet."""
    done = {_key(record["point"]) for record in records}
    return [point for point in points if _key(point) not in done]


def belonging(points: Sequence[Point], records: Sequence[Record]) -> list[Record]:
    """The records of these points, in their order: what an earlier version of a sweep left is passed over."""
    by_key = {_key(record["point"]): record for record in records}
    return [by_key[key] for point in points if (key := _key(point)) in by_key]


def run_sweep(
    experiment: Experiment,
    points: Sequence[Point],
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[int, int, Record], None] = lambda done, total, record: None,
) -> None:
    """Runs the points of a shard that have no record, and writes each one's as a line of JSON when it is done.

    Machines that share the folder never write to the same file; a point belongs to shard ``i`` of ``n`` by its place.

    Args:
        experiment: runs a point.
        points: of the whole sweep.
        folder: of the sweep; made if need be. Models that points train are kept beside it, for all experiments.
        shard: (i, n).
        report: called after each point with how many of the shard's are done, how many it has, and the record.

    Raises:
        InputError: nothing can be written into the folder, or another command runs this shard.
    """
    index, count = shard
    part_points = points[index::count]
    left = missing(part_points, read_records(folder, lambda damaged: None))  # those are run again
    if not left:
        return
    output_folder(folder)
    path = folder / (f"points-{index}-of-{count}.jsonl" if count > 1 else "points.jsonl")
    with only_writer(folder, path.stem, "out"):
        _end_line(path)
        for number, point in enumerate(left, len(part_points) - len(left) + 1):
            started = time.monotonic()
            result = experiment.run(point, folder.parent / "models")
            seconds = time.monotonic() - started
            facts = {"seconds": seconds, "date": now(), "versions": versions()}
            record = cast(Record, {"point": point, "result": result, **facts})
            with path.open("a", encoding="utf-8") as file:
                file.write(json_line(record))
            report(number, len(part_points), record)


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _end_line(path: Path) -> None:
    """Ends a line that a crash cut short, so that the next one stands by itself."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
