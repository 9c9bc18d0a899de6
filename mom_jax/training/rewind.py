"""Where a run went back, and the text behind which it went on: ``rewinds.jsonl`` in its folder."""

from pathlib import Path
from typing import Any, TypedDict

from mom_jax.files import json_line
from mom_jax.training.records import read_records

REWINDS_FILE = "rewinds.jsonl"


class _Rewind(TypedDict):
    step: int  # of the checkpoint that it went back to
    spike: int  # the step that made it do so
    position: dict[str, Any]  # in the text


def record_rewind(run_dir: Path, step: int, spike: int, position: dict[str, Any]) -> None:
    """Adds a line, before anything is removed: a run that is stopped meanwhile meets the same spike again."""
    with (run_dir / REWINDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json_line(_Rewind(step=step, spike=spike, position=position)))


def position_after_rewind(run_dir: Path, step: int) -> dict[str, Any] | None:
    """Where in the text a run goes on from the checkpoint of ``step``, if it has gone back to that."""
    records = read_records(run_dir / REWINDS_FILE, _Rewind)[0]
    return next((record["position"] for record in reversed(records) if record["step"] == step), None)
