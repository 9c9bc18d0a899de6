"""Writes the tables of docs/scaling.md: plans of the published sizes, and scaling over simulated devices.

    python -m tools.scaling [rows] [sent] [weak] [plans]

    rows    one long row of mom-tiny split over 1 to 8 simulated devices: bytes and FLOPs of a device fall
    sent    mom-tiny on simulated devices along each axis: what they send each other in a step
    weak    mom-tiny on 1 to 512 simulated devices, the same rows for each: bytes and FLOPs of a device stay
    plans   the training step of mom-340m and mom-1.3b, compiled for TPUs and GPUs that are not here

Needs the compilers of tools/install_compilers.py. A plan takes minutes; those that are in scaling.json are not made
anew unless `--anew` is given. A plan is what ``mom-jax plan PRESET --topology NAME --compile 1 --json`` says.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("TRITON_INTERPRET", None)

from mom_jax.planning.compilers import FOLDER

sys.path.append(str(FOLDER))  # before JAX looks for compilers

import jax

from mom_jax.cli import plan as verb
from mom_jax.planning.compiled import axes_between, compile_step
from mom_jax.planning.step import sized
from mom_jax.training.config import MeshConfig, get_train_preset
from mom_jax.training.program import Program
from mom_jax.training.sharding import check_fit, make_mesh

PAGE = Path(__file__).resolve().parents[1] / "docs/scaling.md"
RECORD = Path(__file__).with_suffix(".json")
PLANS = (
    ("mom-340m", "h100:8"), ("mom-1.3b", "v5p:8x8x8"), ("mom-340m", "v5e:4x4"), ("mom-1.3b", "h100:64"),
    ("mom-340m", "v6e:2x4"), ("mom-1.3b", "v6e:8x8"), ("mom-340m", "v5p:2x2x2"), ("mom-1.3b", "v5e:16x16"),
)  # fmt: skip
ALONG = ({"data": 8}, {"fsdp": 8}, {"sequence": 8}, {"tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2})
PIECES, LONG = (1, 2, 4, 8), 8192  # simulated devices, and tokens of a row that is split over them
DEVICES = (1, 8, 64, 512)
ROWS, LENGTH = 8, 128  # of each simulated device
CONSTANT = 0.05  # share by which weak scaling may differ from one device


def plans(anew: bool, guess: bool) -> Iterator[str]:
    """Makes the plans that the record lacks, keeping each as it is made; what is only guessed is compiled next time."""
    record: dict[str, Any] = {}
    if RECORD.is_file() and not anew:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    for preset, topology in PLANS:
        name = f"{preset} {topology}"
        if name not in record or not (guess or record[name]["compiled"]):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                verb.main([preset, "--topology", topology, "--compile", str(int(not guess)), "--json"])
            record[name] = json.loads(said.getvalue())
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    yield "| preset | devices | mesh | remat | compiled | GiB of | MFU, at most | tokens / s | days | device hours |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for preset, topology in sorted(PLANS, key=lambda x: x[0], reverse=True):
        yield _line(preset, record[f"{preset} {topology}"])


def _line(preset: str, said: dict[str, Any]) -> str:
    mesh = " x ".join(str(size) for size in said["mesh"].values())
    held, there = (said[x] / 2**30 for x in ("hbm_bytes_per_device", "hbm_bytes_available"))
    compiled = f"{said['compile_seconds']:,.0f} s, {said['custom_kernels']} kernels" if said["compiled"] else "no"
    return (
        f"| {preset} | {said['topology']} ({said['devices']}) | {mesh} | {said['remat']} | {compiled} "
        f"| {held:.1f} of {there:.1f} | {100 * said['mfu_estimate']:.0f} % | {said['tokens_per_second_estimate']:,.0f} "
        f"| {said['days_estimate']:.2f} | {said['device_hours_estimate']:,.0f} |"
    )


def rows() -> Iterator[str]:
    """Compiles a step of mom-tiny for one row that ever more simulated devices share."""
    yield "| devices | MiB of a device | of one device's | MFLOP of a device | of one device's | MiB sent |"
    yield "|---|---|---|---|---|---|"
    config, first = sized(get_train_preset("mom-tiny"), 1, LONG), None
    for count in PIECES:
        run = dataclasses.replace(config, mesh=MeshConfig(data=1, sequence=count))
        mesh = make_mesh(run.mesh, jax.devices()[:count])
        check_fit(run, mesh)
        step = compile_step(Program(run, mesh))
        first, sent = first or step, sum(x.times * x.sent for x in step.sent)
        yield (
            f"| {count} | {step.memory / 2**20:.1f} | {step.memory / first.memory:.3f} "
            f"| {step.flops / 1e6:,.0f} | {step.flops / first.flops:.3f} | {sent / 2**20:.2f} |"
        )


def sent() -> Iterator[str]:
    """Compiles a step of mom-tiny for simulated devices along each axis, and counts what they send."""
    yield "| mesh | exchange | along | times | MiB sent |"
    yield "|---|---|---|---|---|"
    config = get_train_preset("mom-tiny")
    for axes in ALONG:
        run = dataclasses.replace(config, mesh=MeshConfig(**{"data": 1, **axes}))
        mesh = make_mesh(run.mesh, jax.devices()[: math.prod(axes.values())])
        check_fit(run, mesh)
        found: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0])
        for each in compile_step(Program(run, mesh)).sent:
            along = ", ".join(axes_between(each, mesh))
            if along:  # else each device is a group of its own
                total = found[each.kind, along]
                total[0] += each.times
                total[1] += each.times * each.sent
        shown = ", ".join(f"{axis} {size}" for axis, size in axes.items())
        for (kind, along), (times, size) in sorted(found.items(), key=lambda entry: -entry[1][1]):
            yield f"| {shown} | {kind} | {along} | {times:,.0f} | {size / 2**20:.3f} |"


def weak() -> Iterator[str]:
    """Compiles a step of mom-tiny for ever more simulated devices with the same rows each.

    Raises:
        SystemExit: bytes or FLOPs of a device differ from one device's by more than `CONSTANT`.
    """
    yield "| devices | data x fsdp | MiB of a device | beside one device | MFLOP of a device | MiB sent |"
    yield "|---|---|---|---|---|---|"
    config, first = get_train_preset("mom-tiny"), None
    for count in DEVICES:
        run = sized(config, ROWS * count, LENGTH)
        mesh = make_mesh(MeshConfig(data=count), jax.devices()[:count])
        check_fit(run, mesh)
        step = compile_step(Program(dataclasses.replace(run, mesh=MeshConfig(data=count)), mesh))
        first = first or step
        ratio, sent = step.memory / first.memory, sum(x.times * x.sent for x in step.sent)
        yield (
            f"| {count} | {count} x 1 | {step.memory / 2**20:.2f} | {ratio:.3f} "
            f"| {step.flops / 1e6:,.1f} | {sent / 2**20:.2f} |"
        )
        if max(abs(ratio - 1), abs(step.flops / first.flops - 1)) > CONSTANT:
            raise SystemExit(f"tools.scaling: {count} devices need {ratio:.3f} times the bytes of one")


def main() -> None:
    """Makes the chosen tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ["rows", "sent", "weak", "plans"]
    parser.add_argument("tables", nargs="*", choices=[*names, []], help="which tables; all by default")
    parser.add_argument("--anew", action="store_true", help="make every plan again")
    parser.add_argument("--guess", action="store_true", help="compile nothing: guess the plans that are not there yet")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    tables = {"rows": rows, "sent": sent, "weak": weak, "plans": lambda: plans(arguments.anew, arguments.guess)}
    for name in arguments.tables or tables:
        table = "\n".join(tables[name]()) + "\n"
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = place.sub(lambda match, table=table: match[1] + table + match[2], PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
