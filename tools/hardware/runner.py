"""Runs the folder's programs: what is right first, then how fast, most valuable first, until the time is over.

Every part is guarded: what fails is recorded with its error, and the rest goes on. Results are written after each part.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from tools.hardware import rivals, timing
from tools.hardware.checks import check
from tools.hardware.folder import Entry, Folder
from tools.hardware.session import Session

SECTIONS = ("ceilings", "checks", "operators", "layer", "step", "decoding", "rivals", "sizes", "step by XLA")
PROFILED = ("operators", "layer", "step", "decoding")
Results = dict[str, dict[str, Any]]  # of a section: by name, what was found


class Runner:
    """One run over a folder, as far as the time goes."""

    def __init__(self, folder: Folder, out: Path, minutes: float, only: tuple[str, ...] = ()):
        self.folder, self.out, self.only = folder, out, only
        self.end = time.perf_counter() + 60 * minutes
        self.session = Session(folder)
        self.results: Results = {"about": about(folder)}

    def run(self) -> Results:
        """All sections."""
        self._write()
        for section in SECTIONS:
            if time.perf_counter() < self.end:
                self._section(section)
        return self.results

    def _section(self, section: str) -> None:
        outcome = self.results.setdefault(section, {})
        begin = time.perf_counter()
        for name, part in self._parts(section):
            if time.perf_counter() > self.end:
                outcome.setdefault("time was over before", name)
                break
            outcome[name] = guarded(part)
            self._write()
        self.session.forget()
        seconds = round(time.perf_counter() - begin, 1)
        self.results["about"].setdefault("seconds", {})[section] = seconds
        print(f"{section}: {len(outcome)} parts in {seconds} s", file=sys.stderr, flush=True)
        self._write()

    def _parts(self, section: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The parts of a section by name; compiles its programs side by side before the first."""
        if section == "ceilings" and self._wanted(section):
            yield "copy, bytes/s", timing.copy_bandwidth
            yield "bfloat16 product, FLOP/s", timing.product_rate
        elif section == "rivals" and self._wanted(section):
            yield from rivals.comparisons(self.session)
        entries = [e for e in self.folder.entries.values() if e.section == section and self._wanted(section, e.name)]
        if entries:
            yield f"compiling {len(entries)} programs", lambda: self.session.prepare(entries)
        for entry in entries:
            yield entry.name, lambda entry=entry: self._program(entry)

    def _wanted(self, section: str, name: str = "") -> bool:
        return not self.only or any(word in f"{section}: {name}" for word in self.only)

    def _program(self, entry: Entry) -> dict[str, Any]:
        outcome = check(self.session, entry)
        return outcome if entry.section == "checks" else outcome | self._times(entry)

    def _times(self, entry: Entry) -> dict[str, Any]:
        call = timing.rotating(self.session, entry)
        seconds = timing.medians({entry.name: call})[entry.name]
        outcome = {"seconds": seconds, "bytes": entry.bytes, "bytes/s": entry.bytes / seconds}
        if entry.tokens:
            outcome["tokens/s"] = entry.tokens / seconds
        if entry.section in PROFILED:
            outcome["kernels"] = guarded(lambda: self._kernels(call, entry))
        return outcome

    def _kernels(self, call: timing.Call, entry: Entry) -> dict[str, Any]:
        """The longest kernels, ours with the bytes a second of their operands."""
        moved: dict[str, list[int]] = {}
        for name, bytes_ in entry.kernels:
            moved.setdefault(name, []).append(bytes_)
        outcome = {}
        for name, (seconds, times) in list(timing.kernel_seconds(call).items())[:24]:
            outcome[name] = {"seconds": seconds, "times": times}
            if name.strip("_") in moved:  # in a loop, launched more often than it stands in the program
                bytes_moved = moved[name.strip("_")]
                outcome[name]["bytes/s"] = times * sum(bytes_moved) / len(bytes_moved) / seconds
        return outcome

    def _write(self) -> None:
        self.out.write_text(json.dumps(self.results, indent=1), encoding="utf-8")


def guarded(part: Callable[[], Any]) -> Any:
    """What ``part`` gives; if it fails, the first lines of why."""
    try:
        return part()
    except Exception as reason:  # noqa: BLE001  whatever it is, it is recorded and the other parts go on
        lines = [line for line in f"{type(reason).__name__}: {reason}".splitlines() if line.strip()]
        return {"failed": "\n".join(lines[:6])[:1000]}


def about(folder: Folder) -> dict[str, Any]:
    """The device and the versions."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "driver": guarded(_driver) if device.platform == "gpu" else "-",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "made": dict(folder.made),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()


def failed(outcome: Mapping[str, Any]) -> bool:
    """Whether a part failed, gave wrong numbers, or other bits the second time."""
    return "failed" in outcome or outcome.get("right") is False or outcome.get("same") is False
