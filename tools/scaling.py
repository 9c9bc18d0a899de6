"""Writes the tables of docs/scaling.md: plans of the published sizes, and scaling over simulated devices.

    python -m tools.scaling [rows] [long] [sent] [weak] [plans]

    rows    one long row of mom-tiny split over 1 to 8 simulated devices: bytes and FLOPs of a device fall
    long    one row of 65,536 tokens of mom-340m, compiled for eight TPUs and for one
    sent    mom-tiny on simulated devices along each axis: what they send each other in a step
    weak    mom-tiny on 1 to 512 simulated devices, the same rows for each: bytes and FLOPs of a device stay
    plans   the training step of mom-340m and mom-1.3b, compiled for TPUs and GPUs that are not here

Needs the compilers of tools/install_compilers.py. A plan takes minutes; those that are in scaling.json are not made
anew unless `--anew` is given. A plan is what ``mom-jax plan PRESET --topology NAME --compile 1 --json`` says, with the
options of `PLANS` and `LONG_ROW`.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
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
    "mom-340m --topology h100:8", "mom-1.3b --topology v5p:8x8x8",
    "mom-1.3b --topology v5p:8x8x8 --mesh.data 8 --mesh.fsdp 64", "mom-340m --topology v5e:4x4",
    "mom-1.3b --topology h100:64", "mom-340m --topology v6e:2x4", "mom-1.3b --topology v6e:8x8",
    "mom-340m --topology v5p:2x2x2", "mom-1.3b --topology v5e:16x16",
)  # fmt: skip
_ONE_ROW = "mom-340m --global-batch 1 --seq-len 65536 --remat full --mesh.data 1 --topology"
LONG_ROW = (f"{_ONE_ROW} v5e:2x4 --mesh.sequence 8", f"{_ONE_ROW} v5e:1x1")  # which on one device cannot be split
ALONG = ({"data": 8}, {"fsdp": 8}, {"sequence": 8}, {"tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2})
PIECES, LONG = (1, 2, 4, 8), 8192  # simulated devices, and tokens of a row that is split over them
DEVICES = (1, 8, 64, 512)
ROWS, LENGTH = 8, 128  # of each simulated device
_EXCHANGED = {
    "collective-permute": "states and inputs of convolutions (permuted)",
    "all-gather": "parameters (gathered)",
    "reduce-scatter": "gradients (reduce-scattered)",
    "all-reduce": "losses, loads, small gradients (summed)",
}
CONSTANT = 0.05  # share by which weak scaling may differ from one device


def planned(lines: Sequence[str], anew: bool, guess: bool) -> list[dict[str, Any]]:
    """What the record says of plans, made where it lacks them; one that is only guessed is compiled next time."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for line in lines:
        if anew or line not in record or not (guess or record[line]["compiled"] or not record[line]["fits"]):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                verb.main([*line.split(), "--compile", str(int(not guess)), "--json"])
            record[line] = json.loads(said.getvalue())
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [record[line] for line in lines]


def plans(anew: bool, guess: bool) -> Iterator[str]:
    """The published sizes on the devices that are sold."""
    yield "| preset | devices | mesh | remat | compiled | GiB of | MFU, at most | tokens / s | days | device hours |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from map(_line, sorted(planned(PLANS, anew, guess), key=lambda x: x["preset"], reverse=True))


def long(anew: bool, guess: bool) -> Iterator[str]:
    """A row that one device cannot hold: what eight exchange for it."""
    yield "| devices | GiB of | | exchanged by a device and step | times | MiB |"
    yield "|---|---|---|---|---|---|"
    for said in planned(LONG_ROW, anew, guess):
        held = f"{said['hbm_bytes_per_device'] / 2**30:.1f} of {said['hbm_bytes_available'] / 2**30:.1f}"
        fits = f"fits, {said['custom_kernels']} kernels" if said["compiled"] else "the compiler refuses it"
        yield f"| {said['devices']} | {held} | {fits} | | | |"
        for kind, by_axes in said["collectives"].items():
            times, size = (sum(entry[x] for entry in by_axes.values()) for x in ("count", "bytes"))
            yield f"| | | | {_EXCHANGED.get(kind, kind)} | {times:,.0f} | {size / 2**20:,.0f} |"


def _line(said: dict[str, Any]) -> str:
    mesh = " x ".join(str(size) for size in said["mesh"].values())
    held, there = (said[x] / 2**30 for x in ("hbm_bytes_per_device", "hbm_bytes_available"))
    compiled = f"{said['compile_seconds']:,.0f} s, {said['custom_kernels']} kernels" if said["compiled"] else "no"
    return (
        f"| {said['preset']} | {said['topology']} ({said['devices']}) | {mesh} | {said['remat']} | {compiled} "
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
    names = ["rows", "long", "sent", "weak", "plans"]
    parser.add_argument("tables", nargs="*", choices=[*names, []], help="which tables; all by default")
    parser.add_argument("--anew", action="store_true", help="make every plan again")
    parser.add_argument("--guess", action="store_true", help="compile nothing: guess the plans that are not there yet")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    tables = {"rows": rows, "sent": sent, "weak": weak}
    tables |= {made.__name__: functools.partial(made, arguments.anew, arguments.guess) for made in (long, plans)}
    for name in arguments.tables or tables:
        table = "\n".join(tables[name]()) + "\n"
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = place.sub(lambda match, table=table: match[1] + table + match[2], PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
